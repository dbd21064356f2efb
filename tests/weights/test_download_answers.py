"""Answers that are no file, redirects, logins and certificates."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scfm.weights import transport
from scfm.weights.download import RemoteFile, download

from .server import BODY, HASH, MODIFIED, Fault, FileServer, leave_part, part, to

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("waits")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_failures_that_may_pass(status: int, server: FileServer, target: Path, waits: list[float]) -> None:
    server.script.extend([Fault(status=status)] * 4)
    assert download(RemoteFile(server.url()), target) == HASH
    assert waits == [1, 2, 4, 8]
    server.script.extend([Fault(status=status)] * 5)
    with pytest.raises(ConnectionError, match=f"brought nothing new: 127.0.0.1 answered {status}. Try again"):
        download(RemoteFile(server.url()), target.with_name("second"))
    assert len(server.seen) == 10


@pytest.mark.parametrize(
    ("status", "error", "match"),
    [
        (404, FileNotFoundError, "is not there .127.0.0.1 answered 404.: check the address"),
        (410, FileNotFoundError, "is not there .127.0.0.1 answered 410.: check the address"),
        (401, PermissionError, "was refused .127.0.0.1 answered 401.: it may need a login"),
        (403, PermissionError, "was refused .127.0.0.1 answered 403.: it may need a login"),
        (202, OSError, "could not be fetched .127.0.0.1 answered 202; expected 200 or 206"),
        (204, OSError, "answered 204"),
        (300, OSError, "answered 300"),
        (304, OSError, "answered 304"),
        (400, OSError, "answered 400"),
        (418, OSError, "answered 418"),
        (501, OSError, "answered 501"),
    ],
)
def test_failures_that_stay(
    status: int, error: type[OSError], match: str, server: FileServer, target: Path, waits: list[float]
) -> None:
    leave_part(server, target)
    waits.clear()
    page = b"" if status in (204, 304) else b"<html>"
    server.always = Fault(status=status, body=page, headers={"Content-Type": "text/html"})
    with pytest.raises(error, match=rf"{server.url()}.*{match}.*put it at {target}") as caught:
        download(RemoteFile(server.url()), target)
    assert type(caught.value) is error
    assert len(server.seen) == 1
    assert not waits
    assert part(target).stat().st_size == 50_000


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("300", 300),
        ("Wed, 01 Jan 2025 10:02:00 GMT", 120),
        ("Wed, 01 Jan 2025 10:02:00 -0000", 120),
        ("Wed, 01 Jan 2025 09:00:00 GMT", 0),
        ("soon", 1),
        ("-5", 1),
        ("1.5", 1),
        ("٣", 1),
        ("Wed, 99 Jan 2025 10:02:00 GMT", 1),
        ("", 1),
    ],
)
def test_the_wait_that_is_asked_for(text: str, seconds: float, waits: list[float]) -> None:
    headers = {"Retry-After": text, "Date": MODIFIED}
    found = transport.retry_after(SimpleNamespace(headers=headers))  # type: ignore[arg-type]
    assert (1 if found is None else found) == seconds


def test_waits_are_kept(server: FileServer, target: Path, waits: list[float]) -> None:
    for text in ("7", in_seconds(100), "soon"):
        server.script.append(Fault(status=503, headers={"Retry-After": text}))
    download(RemoteFile(server.url()), target)
    assert waits == [7, pytest.approx(100, abs=30), 4]


@pytest.mark.parametrize("text", ["301", "9" * 18, "date"])
def test_a_long_wait_ends_a_call(text: str, server: FileServer, target: Path, waits: list[float]) -> None:
    leave_part(server, target)
    waits.clear()
    server.always = Fault(status=429, headers={"Retry-After": in_seconds(3600) if text == "date" else text})
    seconds = "3,(600|5\\d\\d)" if text == "date" else f"{float(text):,.0f}"
    with pytest.raises(ConnectionError, match=f"answered 429, and asks to wait for {seconds} s; .*50,000 of 200,000"):
        download(RemoteFile(server.url()), target)
    assert len(server.seen) == 1
    assert not waits


@pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml"])
@pytest.mark.parametrize("known", [None, HASH])
def test_a_web_page(kind: str, known: str | None, server: FileServer, target: Path) -> None:
    leave_part(server, target)
    server.always = Fault(headers={"Content-Type": kind})
    with pytest.raises(ValueError, match=rf"{server.url()} gave a web page instead of the file"):
        download(RemoteFile(server.url(), known), target)
    assert part(target).stat().st_size == 50_000


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/moved?a=%2F", "moved?a=%2F", "//127.0.0.1:PORT/moved?a=%2F#end"])
def test_redirects_within_the_origin(status: int, location: str, server: FileServer, target: Path) -> None:
    server.files["/moved?a=%2F"] = BODY
    leave_part(server, target)
    server.script.append(to(location.replace("PORT", str(server.port)), status, **{"Set-Cookie": "a=b; Path=/"}))
    assert download(RemoteFile(server.url()), target) == HASH
    assert [seen.path for seen in server.seen] == ["/file", "/moved?a=%2F"]
    assert server.ranges == ["bytes=50000-"] * 2
    assert "cookie" not in server.seen[1].headers


def test_resuming_asks_at_the_first_address(server: FileServer, target: Path) -> None:
    server.files["/signed"] = BODY
    server.script.extend([to("/signed"), Fault(stop_after=1000), to("/signed")])
    assert download(RemoteFile(server.url()), target) == HASH
    assert [seen.path for seen in server.seen] == ["/file", "/signed"] * 2


def test_signatures_stay_out_of_messages(server: FileServer, target: Path) -> None:
    for fault, error in [(Fault(stop_after=0), ConnectionError), (Fault(status=403), PermissionError)]:
        server.files["/signed?key=secret"] = BODY
        server.script.extend([to("/signed?key=secret"), fault] * 5)
        with pytest.raises(error) as caught:
            download(RemoteFile(server.url()), target)
        assert "secret" not in str(caught.value)
        server.script.clear()


def test_redirects_have_an_end(server: FileServer, target: Path) -> None:
    server.files["/5"] = BODY
    server.script.extend([to(f"/{number}") for number in range(1, 6)])
    assert download(RemoteFile(server.url()), target) == HASH
    server.seen.clear()
    server.always = to("/file")
    with pytest.raises(OSError, match=rf"{server.url()} redirects more than 5 times"):
        download(RemoteFile(server.url()), target.with_name("second"))
    assert len(server.seen) == 6


@pytest.mark.parametrize("location", ["http://127.0.0.1:PORT/file", "http://localhost:PORT/file", "https://localhost/"])
@pytest.mark.parametrize("hosts", [(), (".localhost", "127.0.0.2", "ocalhost", "host"), (".0.0.1",)])
def test_redirects_elsewhere_are_refused(
    location: str, hosts: tuple[str, ...], server: FileServer, target: Path
) -> None:
    with FileServer() as other:
        server.always = to(location.replace("PORT", str(other.port)))
        there = re.search("//([a-z0-9.]+)", location)[1]  # type: ignore[index]
        with pytest.raises(ValueError, match=rf"at 127.0.0.1 redirects to {there} .*not allowed; it was not asked"):
            download(RemoteFile(server.url(), hosts=hosts), target)
        assert not other.seen
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("url", "location", "hosts"),
    [
        ("https://a.org/f", "https://a.org/g", ()),
        ("https://a.org/f", "https://A.ORG:8443/g", ()),
        ("http://a.org/f", "https://a.org/g", ()),
        ("http://a.org:80/f", "http://a.org/g", ()),
        ("https://a.org/f", "https://cdn.b.org/g", ("cdn.b.org",)),
        ("https://a.org/f", "https://x.y.b.org/g", ("c.org", ".b.org")),
        ("https://a.org/f", "//cdn.b.org/g", ("CDN.b.org",)),
    ],
)
def test_what_redirects_may_do(url: str, location: str, hosts: tuple[str, ...]) -> None:
    following = transport.redirected(RemoteFile(url, hosts=hosts), url, location)
    assert following.endswith("/g")


@pytest.mark.parametrize(
    ("url", "location", "hosts"),
    [
        ("https://a.org/f", "http://a.org/g", ()),
        ("https://a.org/f", "http://cdn.b.org/g", ("cdn.b.org",)),
        ("https://a.org/f", "https://b.org/g", (".b.org", "c.org")),
        ("https://a.org/f", "https://evilb.org/g", ("b.org",)),
        ("https://a.org/f", "https://cdn.b.org.evil.org/g", ("cdn.b.org", ".b.org")),
        ("https://a.org/f", "https://b.a.org/g", ()),
        ("http://a.org/f", "http://cdn.b.org/g", ("cdn.b.org",)),
        ("http://a.org/f", "http://a.org:81/g", ("a.org",)),
    ],
)
def test_what_redirects_may_not_do(url: str, location: str, hosts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="which is not allowed"):
        transport.redirected(RemoteFile(url, hosts=hosts), url, location)


def test_nothing_leads_back_from_https() -> None:
    mirror = RemoteFile("http://a.org/f", hosts=("b.org",))
    with pytest.raises(ValueError, match=r"redirects to a.org .http, port 80., which is not allowed"):
        transport.redirected(mirror, "https://b.org/f", "http://a.org/g")


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "https://me:secret@a.org/g",
        "https://evil.org\\@a.org/g",
        "https://a.org\\.evil.org/g",
        "https://[::1/g",
        "https://a.org:port/g",
        "https://a.org evil.org/g",
        "file:///etc/passwd",
        "javascript:alert(1)",
    ],
)
def test_redirects_to_what_is_no_address(location: str | None, server: FileServer, target: Path) -> None:
    server.always = to(location)
    with pytest.raises(OSError, match="redirects to .*, which is not an address"):
        download(RemoteFile(server.url(), hosts=("a.org", "evil.org")), target)
    assert len(server.seen) == 1


def test_no_login_is_sent(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logins = "machine 127.0.0.1 login me password secret\ndefault login me password secret\n"
    for name in (".netrc", "_netrc", "other"):
        (tmp_path / name).write_text(logins)
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    server.files["/moved"] = BODY
    for name in ("", str(tmp_path / "other")):
        monkeypatch.setenv("NETRC", name) if name else monkeypatch.delenv("NETRC", raising=False)
        server.script.append(to("/moved"))
        download(RemoteFile(server.url()), target.with_name(f"file{len(name)}"))
    assert len(server.seen) == 4
    assert not any("authorization" in seen.headers for seen in server.seen)


@pytest.mark.parametrize("password", ["pa55word", "pa55#word", "pa55/word", "pa55 word", "pa55@word", "pa55[word"])
@pytest.mark.parametrize("proxy", ["http://me:{}@127.0.0.1:1", "me:{}@127.0.0.1:1", "ftp://me:{}@[::1"])
def test_a_password_of_a_proxy_is_not_repeated(
    proxy: str, password: str, target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("http_proxy", proxy.format(password))
    caplog.set_level("INFO", "scfm")
    with pytest.raises(OSError, match="http://mirror.invalid/file|mirror.invalid cannot be asked") as caught:
        download(RemoteFile("http://mirror.invalid/file"), target)
    error: BaseException | None = caught.value
    assert "55" not in str(error) + caplog.text.replace(str(target), "")
    assert error.__suppress_context__ or "55" not in str(error.__cause__)


def test_a_redirect_over_https(
    secure: FileServer, server: FileServer, target: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("HOME", str(target.parent))
    secure.script.append(to(secure.url(host="127.0.0.1")))
    remote = RemoteFile(secure.url(host="localhost"), hosts=("127.0.0.1",))
    assert download(remote, target) == HASH
    secure.script.append(to(server.url()))
    with pytest.raises(ValueError, match=r"redirects to 127.0.0.1 .http, .* not allowed"):
        download(remote, target.with_name("second"))
    assert not server.seen


def test_a_certificate_that_nobody_vouches_for(secure: FileServer, target: Path) -> None:
    with pytest.raises(OSError, match="certificate of localhost was refused .*self.signed.*REQUESTS_CA_BUNDLE"):
        download(RemoteFile(secure.url(host="localhost")), target)


def test_a_proxy_of_the_environment(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://mirror.invalid/file"
    server.files[url] = BODY
    monkeypatch.setenv("http_proxy", server.url(""))
    assert download(RemoteFile(url), target) == HASH
    assert [seen.path for seen in server.seen] == [url]
    monkeypatch.setenv("http_proxy", "http://")
    with pytest.raises(OSError, match="mirror.invalid cannot be asked .*InvalidProxyURL"):
        download(RemoteFile(url), target.with_name("second"))
