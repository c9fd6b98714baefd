"""When two prompts count as the same: Unicode, letter case and white space folded."""

import unicodedata

import narwhals as nw


def normalize_prompts(prompts):
    """Prompts (a polars or cuDF series) in NFKC, lower case, single spaces; a missing one stays so.

    Prompts that are equal afterwards are exact duplicates.
    """
    series = nw.from_native(prompts, series_only=True)

    # NFKC changes nothing in ASCII, so only the other prompts leave the frame library
    not_ascii = series.str.contains(r"[^\x00-\x7F]").fill_null(False)
    folded = [
        " ".join(unicodedata.normalize("NFKC", prompt).lower().split())
        for prompt in series.filter(not_ascii).to_list()
    ]

    # white space is listed, since cuDF and pandas take more control characters for it than polars
    ascii_only = series.str.to_lowercase().str.replace_all("[ \t\n\v\f\r]+", " ")
    ascii_only = ascii_only.str.strip_chars(" ")
    if not folded:
        return ascii_only.to_native()
    return ascii_only.scatter(not_ascii.arg_true(), folded).to_native()
