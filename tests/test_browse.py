"""The local page: what it shows, what it never serves, and what it refuses."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from src.metrics import l2_normalize
from src.paths import ROOT
from src.submit import Index, browse
from tests.helpers.results import PROMPTS, write_result

HOST = "http://127.0.0.1"


def client_of(file, **options):
    return TestClient(browse.application(Index(file, **options)), base_url=HOST)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return client_of(write_result(tmp_path_factory.mktemp("result")))


def names(page):
    return re.findall(r'<p class="name">([^<]*)</p>', page.text)


def test_all_images_are_there_the_most_confident_first(client):
    page = client.get("/")
    assert page.status_code == 200
    assert names(page) == ["5.png", "4.png", "3.png", "2.png", "1.png", "0.png"]
    assert names(client.get("/?sort=least+confident"))[0] == "0.png"
    assert names(client.get("/?min_confidence=0.7")) == ["5.png", "4.png"]


def test_a_text_and_more_like_this(client):
    page = client.get("/", params={"q": PROMPTS[2]})
    assert names(page)[0] == "2.png" and "similarity 1.000" in page.text
    near = re.search(r'href="(/\?near=2)"', page.text)
    assert names(client.get(near[1]))[0] == "2.png"
    both = client.get("/", params={"q": PROMPTS[1], "near": 2})
    assert names(both)[0] == "1.png", "a text that was typed replaces the image that was clicked"


def test_pages_of_a_long_list(tmp_path):
    count = 2 * browse.PAGE_SIZE + 5
    x = l2_normalize(np.random.default_rng(0).standard_normal((count, 384), dtype=np.float32))
    client = client_of(write_result(tmp_path, vectors=x))
    found = []
    address = "/"
    while address:
        page = client.get(address)
        found += names(page)
        following = re.search(r'<a href="([^"]*)" rel="next">', page.text)
        address = following and following[1].replace("&amp;", "&")
    assert found == [f"{row}.png" for row in reversed(range(count))]
    assert names(client.get("/?page=99"))[-1] == "0.png", "the last page, not an empty one"


def test_a_thumbnail_is_a_small_jpeg(client):
    answer = client.get("/image/0")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == "JPEG" and max(image.size) <= 320
    assert client.get("/image/6").status_code == 404


def test_names_and_prompts_are_data(tmp_path):
    x = l2_normalize(np.eye(2, 384, dtype=np.float32))
    ids = ["<img src=x onerror=alert(1)>", '"><script>alert(2)</script>']
    client = client_of(write_result(tmp_path, vectors=x, ids=ids))
    for address in ("/", "/?near=0", "/?q=<script>alert(3)</script>", "/?sort=<script>"):
        page = client.get(address).text
        assert "<script" not in page and "<img src=x" not in page, address
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert "<b>a lighthouse" not in client_of(write_result(tmp_path)).get("/").text


@pytest.mark.parametrize(
    "address",
    [
        "/image/../../../../etc/passwd",
        "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/image/..%2fsecret.png",
        "/image//etc/passwd",
        "/image/%2fetc%2fpasswd",
        "/image/-1",
        "/image/0.png",
        "/image/1",
        "/image/2",
        "/image/3",
        "/image/4",
        "/image/99999999999999999999",
        "/style.css/../browse.html.jinja",
    ],
)
def test_nothing_outside_the_folder_is_served(tmp_path, address):
    images = tmp_path / "images"
    images.mkdir()
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    Image.new("RGB", (8, 8)).save(images / "good.png")
    (images / "link.png").symlink_to(secret)
    (images / "up").symlink_to(tmp_path)
    ids = ["good.png", "../secret.png", str(secret), "link.png", "up/secret.png"]
    x = l2_normalize(np.eye(5, 384, dtype=np.float32))
    client = client_of(write_result(tmp_path, vectors=x, ids=ids), images=images)
    assert client.get("/image/0").status_code == 200
    assert client.get(address).status_code in (400, 404)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"q": "x" * 60_000}, "the query has 60,000 characters"),
        ({"near": "99"}, "near: there is no image 99; images are numbered 0 to 5"),
        ({"near": "abc"}, "near: &#39;abc&#39; is not a number"),
        ({"min_confidence": "nan"}, "min_confidence: nan is not within -1..1"),
        ({"sort": "size"}, "sort: &#39;size&#39; is not one of"),
        ({"page": "1.5"}, "page: &#39;1.5&#39; is not a number"),
    ],
)
def test_a_bad_address_is_answered_with_a_reason(client, query, message):
    answer = client.get("/", params=query)
    assert answer.status_code == 400 and message in answer.text


def test_another_site_cannot_ask_through_the_browser(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_a_page_without_images_says_why(client):
    page = client.get("/", params={"q": PROMPTS[0], "min_confidence": 0.99})
    assert not names(page) and "no image has a confidence of 0.99 or more" in page.text
    assert client.get("/favicon.ico").status_code == 204, "a browser asks for it on every page"


def test_an_empty_query_shows_all_images(client):
    assert len(names(client.get("/?q=++"))) == len(PROMPTS)


def test_a_port_in_use_is_refused(tmp_path, capsys):
    file = write_result(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert browse.main([str(file), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"port {port} cannot be used (Address already in use): choose another" in error
    assert browse.main([str(tmp_path / "nowhere.parquet"), "--port", "0"]) == 2
    assert "nowhere.parquet does not exist" in capsys.readouterr().err


def test_the_command_serves_on_the_loopback_address_alone(tmp_path):
    file = write_result(tmp_path)
    command = [sys.executable, "-m", "src.submit.browse", str(file), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            address = None
            while address is None:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                address = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            with urllib.request.urlopen(address[0], timeout=60) as answer:
                assert b"5.png" in answer.read()

            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(f"{address[0]}?q={'x' * 1_000_000}", timeout=60)

            own = socket.gethostbyname(socket.gethostname())
            if not own.startswith("127."):
                with pytest.raises((urllib.error.URLError, OSError)):
                    urllib.request.urlopen(f"http://{own}:{address[1]}/", timeout=5)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert process.returncode == 0
