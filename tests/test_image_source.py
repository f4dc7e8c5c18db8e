"""Each kind of address by its own way, Label Studio's token to Label Studio alone, and no other kind at all."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Iterator

import pytest
from fake_label_studio import FakeLabelStudio, Fault
from hypothesis import given
from hypothesis import strategies as st
from internet import OTHER, PUBLIC, Internet, answer, moved

from lplgrad_backend.errors import ImageError, ImageForbidden, ImageUnavailable, ImageUnreadable
from lplgrad_backend.image_source import ImageSource
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.public_web import PublicWeb

UPLOAD = "/data/upload/1/a.png"
CLOUD = ["s3://bucket/folder/ä b.png", "gs://bucket/a.png", "azure-blob://container/a.png?x=1#y"]


@pytest.fixture
def fake() -> FakeLabelStudio:
    fake = FakeLabelStudio()
    fake.uploads |= {UPLOAD: b"uploaded", "/data/local-files": b"local"}
    return fake


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet().serving() as internet:
        internet.pages["/a.png"] = [answer(b"public")]
        internet.pages["/a.png?X-Amz-Signature=secret"] = [answer(b"signed")]
        yield internet


@pytest.fixture
def web(internet: Internet) -> Iterator[PublicWeb]:
    with internet.web() as web:
        yield web


def source_of(fake: FakeLabelStudio, web: PublicWeb, limit_bytes: int = 100) -> ImageSource:
    pauses: list[float] = []
    client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session(), pause=pauses.append)
    return ImageSource(client, web, limit_bytes)


@pytest.fixture
def source(fake: FakeLabelStudio, web: PublicWeb) -> ImageSource:
    return source_of(fake, web)


def read(source: ImageSource, uri: str, task_id: int | None = 7) -> bytes:
    return source.read(source.place(uri, task_id), uri)


def refused(source: ImageSource, kind: type[ImageError], uri: str, task_id: int | None = 7) -> str:
    with pytest.raises(kind) as caught:
        read(source, uri, task_id)
    assert type(caught.value) is kind
    return str(caught.value)


class TestTheTable:
    @pytest.mark.parametrize("before", ["", "http://label-studio.test", " HTTP://Label-Studio.test:80"])
    @pytest.mark.parametrize(
        ("path", "content"), [(UPLOAD, b"uploaded"), ("/data/local-files/?d=folder/a.png", b"local")]
    )
    def test_label_studio_s_own_with_the_token(
        self, source: ImageSource, fake: FakeLabelStudio, internet: Internet, before: str, path: str, content: bytes
    ) -> None:
        assert read(source, before + path, None) == content
        assert fake.asked[-1].authorization == f"Token {fake.legacy_token()}"
        assert fake.asked[-1].query.get("d") == ("folder/a.png" if "?" in path else None)
        assert internet.connected == []

    def test_http_from_there_without_it(self, source: ImageSource, fake: FakeLabelStudio, internet: Internet) -> None:
        assert read(source, "http://images.test/a.png", None) == b"public"
        assert fake.asked == []
        assert "authorization" not in internet.asked[0].lower()

    @pytest.mark.parametrize("uri", CLOUD)
    def test_clouds_through_the_resolver_which_redirects(
        self, source: ImageSource, fake: FakeLabelStudio, internet: Internet, uri: str
    ) -> None:
        fake.redirects["/tasks/7/resolve"] = "http://images.test/a.png?X-Amz-Signature=secret"
        assert read(source, uri) == b"signed"
        assert base64.urlsafe_b64decode(fake.asked[0].query["fileuri"]).decode() == uri
        assert fake.asked[0].authorization == f"Token {fake.legacy_token()}"
        assert [fake.legacy_token() in asked for asked in internet.asked] == [False]
        assert "authorization" not in internet.asked[0].lower()

    @pytest.mark.parametrize("uri", CLOUD)
    def test_or_answers_with_the_bytes(self, source: ImageSource, fake: FakeLabelStudio, uri: str) -> None:
        fake.uploads["/tasks/7/resolve"] = b"proxied"
        assert read(source, uri) == b"proxied"

    @pytest.mark.parametrize("uri", CLOUD)
    @pytest.mark.parametrize("task_id", [None, 0])
    def test_only_for_a_stored_task(self, source: ImageSource, uri: str, task_id: int | None) -> None:
        assert "only Label Studio knows" in refused(source, ImageUnavailable, uri, task_id)

    def test_a_storage_that_is_missing(self, source: ImageSource) -> None:
        assert "status 404" in refused(source, ImageUnavailable, CLOUD[0])

    def test_a_personal_access_token(self, fake: FakeLabelStudio, web: PublicWeb) -> None:
        client = LabelStudio(fake.url, fake.personal_token(), session=fake.session())
        assert read(ImageSource(client, web, 100), UPLOAD) == b"uploaded"
        assert fake.asked[-1].authorization == "Bearer access-0"

    def test_label_studio_on_this_machine(self, fake: FakeLabelStudio, web: PublicWeb, internet: Internet) -> None:
        with fake.serving() as url:
            source = ImageSource(LabelStudio(url, fake.legacy_token()), web, 100)
            assert read(source, url + UPLOAD) == read(source, UPLOAD) == b"uploaded"
            other = url.replace("127.0.0.1", "127.0.0.2") + UPLOAD
            assert "not public" in refused(source, ImageForbidden, other)
        assert internet.connected == []

    def test_label_studio_under_a_path(self, web: PublicWeb) -> None:
        fake = FakeLabelStudio(url="http://label-studio.test/studio")
        fake.uploads["/studio" + UPLOAD] = b"uploaded"
        source = source_of(fake, web)
        for uri in (UPLOAD, "/studio" + UPLOAD, fake.url + UPLOAD):
            assert read(source, uri) == b"uploaded"

    def test_without_label_studio_only_http(self, web: PublicWeb) -> None:
        source = ImageSource(None, web, 100)
        assert read(source, "http://images.test/a.png") == b"public"
        for uri in (UPLOAD, CLOUD[0]):
            assert "Set LABEL_STUDIO_URL" in refused(source, ImageUnavailable, uri)


class TestWhatIsNotRead:
    @pytest.mark.parametrize(
        "uri",
        [
            "file:///etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "etc/passwd", "a.png", "", " ",
            "C:\\a.png", "\\\\server\\a.png", "ftp://images.test/a.png", "gopher://images.test/", "jar:http://x.test/",
            "data:image/png;base64,AA==", "javascript:alert(1)", "dict://x.test/", "//images.test/a.png", "http:/a.png",
            "http://[::1/a.png", "http://user:secret@images.test/a.png", "/api/projects/", "/user/logout/", "/data/",
            "/api/data/upload/a.png", "http://label-studio.test/api/current-user/token", "http://label-studio.test/user/logout",
            "/data/upload/../../api/", "/data/upload/%2e%2e/%2e%2e/api/", "/data/upload/%252e%252e/api/",
            "/data/upload/..\\..\\api", "/data/local-files/?d=../../etc/passwd", "/data/local-files/?d=%2e%2e%2fsecret",
            "/data/upload/1/a\x00.png", "/data/upload/1/a%0d%0aX: 1.png", "/data/uploads/a.png", "/Data/upload/1/a.png",
            "http://127.0.0.1/a.png", "http://[::ffff:10.0.0.1]/a.png", "http://169.254.169.254/latest/meta-data/",
        ],
    )  # fmt: skip
    def test_is_refused_before_anything_is_asked(
        self, source: ImageSource, fake: FakeLabelStudio, internet: Internet, uri: str
    ) -> None:
        assert "secret@" not in refused(source, ImageForbidden, uri)
        assert (fake.asked, internet.connected) == ([], [])

    @given(st.text("./\\%25efE;?=&d", max_size=16).map(lambda text: "/data/upload/" + text + "/../x"))
    def test_no_path_climbs(self, uri: str) -> None:
        fake = FakeLabelStudio()
        with Internet().web() as web, pytest.raises(ImageForbidden):
            source_of(fake, web).place(uri, 7)

    @given(st.text(max_size=30) | st.text("htpfile:/.@?#[]%s3", max_size=20))
    def test_a_place_or_an_error_of_ours(self, uri: str) -> None:
        fake = FakeLabelStudio()
        with Internet().web() as web:
            try:
                place = source_of(fake, web).place(uri, 7)
            except ImageError:
                return
        assert bool(place.path) != bool(place.url)
        assert place.url.lower().startswith("http") or place.path.startswith(("/tasks/7/resolve/?", "/data/"))


class TestTheToken:
    @pytest.mark.parametrize(
        "uri",
        [
            "http://label-studio.test.images.test/data/upload/1/a.png", "http://images.test/data/upload/1/a.png",
            "http://label-studio.test:81/data/upload/1/a.png", "http://images.test/http://label-studio.test/data/upload/",
        ],
    )  # fmt: skip
    def test_hosts_that_look_like_label_studio_get_none(
        self, source: ImageSource, fake: FakeLabelStudio, internet: Internet, uri: str
    ) -> None:
        internet.names |= {"label-studio.test.images.test": [[OTHER]], "label-studio.test": [[PUBLIC]]}
        refused(source, ImageUnavailable, uri)  # status 404
        assert fake.asked == []
        assert "authorization" not in internet.asked[0].lower()

    @pytest.mark.parametrize("location", ["http://images.test/b", "//images.test/b", "http://label-studio.test:81/b"])
    def test_goes_along_no_redirect(
        self, source: ImageSource, fake: FakeLabelStudio, internet: Internet, location: str
    ) -> None:
        internet.names["label-studio.test"] = [[PUBLIC]]
        internet.pages["/b"] = [moved("http://other.test/a.png")]
        fake.redirects[UPLOAD] = location
        del fake.uploads[UPLOAD]
        assert read(source, UPLOAD) == b"public"
        assert len(internet.asked) == 2
        assert not any("authorization" in asked.lower() or fake.legacy_token() in asked for asked in internet.asked)

    def test_does_not_come_back_with_a_redirect_to_label_studio(
        self, source: ImageSource, fake: FakeLabelStudio, internet: Internet
    ) -> None:
        internet.names["label-studio.test"] = [["10.0.0.1"]]
        internet.pages["/b"] = [moved(fake.url + UPLOAD)]
        assert "not public" in refused(source, ImageForbidden, "http://images.test/b")
        assert fake.asked == []

    @pytest.mark.parametrize("location", ["http://127.0.0.1/a", "http://169.254.169.254/a", "file:///etc/passwd"])
    def test_the_resolver_leads_nowhere_local(
        self, source: ImageSource, fake: FakeLabelStudio, internet: Internet, location: str
    ) -> None:
        fake.redirects["/tasks/7/resolve"] = location
        refused(source, ImageForbidden, CLOUD[0])
        assert internet.connected == []

    @pytest.mark.parametrize("what", [401, 403, 404, 500, "cut", "hang"])
    @pytest.mark.parametrize("uri", [UPLOAD, "/data/local-files/?d=a.png&key=secret", CLOUD[0]])
    def test_stands_in_no_message(self, source: ImageSource, fake: FakeLabelStudio, what: int | str, uri: str) -> None:
        fake.faults.append(Fault("", what, times=9))
        with pytest.raises(ImageUnavailable) as caught:
            read(source, uri)
        assert fake.legacy_token() not in "".join(traceback.format_exception(caught.value))

    def test_nor_does_a_signature(self, source: ImageSource, fake: FakeLabelStudio, internet: Internet) -> None:
        fake.redirects["/tasks/7/resolve"] = "http://images.test/b?X-Amz-Signature=secret"
        with pytest.raises(ImageUnavailable, match="status 404") as caught:
            read(source, CLOUD[0])
        assert "secret" not in "".join(traceback.format_exception(caught.value))


class TestTrouble:
    def test_the_limit_holds_everywhere(self, fake: FakeLabelStudio, web: PublicWeb) -> None:
        source = source_of(fake, web, limit_bytes=5)
        fake.redirects["/tasks/7/resolve"] = "http://images.test/a.png"
        for uri in ("http://images.test/a.png", CLOUD[0], UPLOAD):
            assert "more than 5 bytes" in refused(source, ImageUnreadable, uri)
        assert read(source_of(fake, web, limit_bytes=8), UPLOAD) == b"uploaded"

    @pytest.mark.parametrize("what", ["cut", "hang"])
    def test_a_label_studio_that_is_away_is_not_asked_for_each_image(
        self, source: ImageSource, fake: FakeLabelStudio, what: str
    ) -> None:
        fake.faults.append(Fault("", what, times=99))
        refused(source, ImageUnavailable, UPLOAD)
        asked = len(fake.asked)
        assert "a moment ago" in refused(source, ImageUnavailable, CLOUD[0])
        assert len(fake.asked) == asked
        assert read(source, "http://images.test/a.png") == b"public"

    def test_one_missing_image_does_not_silence_it(self, source: ImageSource) -> None:
        refused(source, ImageUnavailable, "/data/upload/1/gone.png")
        assert read(source, UPLOAD) == b"uploaded"

    def test_keys_tell_images_apart(self, source: ImageSource) -> None:
        places = [(UPLOAD, 7), ("http://images.test/a.png", 7), (CLOUD[0], 7), (CLOUD[0], 8), (CLOUD[1], 7)]
        assert len({source.place(uri, task).key for uri, task in places}) == len(places)
        same = [(UPLOAD, 7), (UPLOAD, 8), (f"http://label-studio.test{UPLOAD}", None), (f" {UPLOAD}#x", 7)]
        assert len({source.place(uri, task).key for uri, task in same}) == 1
