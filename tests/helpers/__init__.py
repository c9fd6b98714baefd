"""What several tests share: small models, small outputs, files made here."""
