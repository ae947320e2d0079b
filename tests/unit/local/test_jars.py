"""Jars: only bytes that were pinned get their name, and an interrupted fetch is continued."""

import hashlib
import threading
from pathlib import Path

import pytest

from claw_r1.errors import DependencyUnreachable
from claw_r1.local.jars import ATTEMPTS, Jar, ensure_jars, main, read_pins


def a_jar(number: int) -> tuple[Jar, bytes]:
    content = b"jar %d" % number
    return Jar(f"org.example:part{number}:1.{number}", hashlib.sha256(content).hexdigest()), content


JARS = [a_jar(number) for number in range(5)]
PINS = [jar for jar, _ in JARS]
CONTENT = {jar.coordinate: content for jar, content in JARS}


class Repository:
    """Serves jars by coordinate; what `wrong` names is cut short that often, what is in `away` is not there."""

    def __init__(self, wrong: dict[str, int] | None = None, away: set[str] | None = None) -> None:
        self.wrong = dict(wrong or {})
        self.away = away or set()
        self.served: list[str] = []
        self._lock = threading.Lock()

    def download(self, coordinate: str, into: Path) -> Path:
        with self._lock:
            self.served.append(coordinate)
            short = self.wrong.get(coordinate, 0) > 0
            self.wrong[coordinate] = self.wrong.get(coordinate, 0) - 1
        if coordinate in self.away:
            raise RuntimeError(f"Artifact {coordinate} not found")
        into.mkdir(parents=True, exist_ok=True)
        path = into / "downloaded"
        path.write_bytes(CONTENT[coordinate][: 2 if short else None])
        return path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_every_pin_is_a_coordinate_and_a_sha256() -> None:
    pins = read_pins()
    assert len(pins) == 93
    assert len({jar.file_name for jar in pins}) == 93
    assert all(jar.coordinate.count(":") == 2 and len(bytes.fromhex(jar.sha256)) == 32 for jar in pins)


def test_the_class_path_is_in_the_order_of_the_pins(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    paths = ensure_jars(
        tmp_path, PINS, download=Repository().download, progress=lambda done, total: progress.append((done, total))
    )
    assert [path.read_bytes() for path in paths] == [CONTENT[jar.coordinate] for jar in PINS]
    assert progress == [(done, 5) for done in range(6)]
    assert names(tmp_path) == {jar.file_name for jar in PINS}


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    ensure_jars(tmp_path, PINS[:2], download=Repository().download)
    repository = Repository()
    ensure_jars(tmp_path, PINS, download=repository.download)
    assert sorted(repository.served) == [jar.coordinate for jar in PINS[2:]]


def test_a_damaged_jar_is_fetched_again(tmp_path: Path) -> None:
    paths = ensure_jars(tmp_path, PINS, download=Repository().download)
    paths[3].write_bytes(b"damaged")
    repository = Repository()
    ensure_jars(tmp_path, PINS, download=repository.download)
    assert repository.served == [PINS[3].coordinate]
    assert paths[3].read_bytes() == CONTENT[PINS[3].coordinate]


def test_a_transfer_cut_short_is_tried_again(tmp_path: Path) -> None:
    repository = Repository(wrong={PINS[1].coordinate: ATTEMPTS - 1})
    paths = ensure_jars(tmp_path, PINS, download=repository.download)
    assert paths[1].read_bytes() == CONTENT[PINS[1].coordinate]


def test_other_bytes_than_pinned_never_get_the_jar_its_name(tmp_path: Path) -> None:
    repository = Repository(wrong={PINS[1].coordinate: 99})
    with pytest.raises(DependencyUnreachable, match=r"part1:1\.1 arrived with other bytes"):
        ensure_jars(tmp_path, PINS, download=repository.download)
    assert PINS[1].file_name not in names(tmp_path)
    ensure_jars(tmp_path, PINS, download=Repository().download)
    assert names(tmp_path) == {jar.file_name for jar in PINS}


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DependencyUnreachable, match="copy that directory") as raised:
        ensure_jars(tmp_path, PINS, download=Repository(away={PINS[0].coordinate}).download)
    assert str(tmp_path) in str(raised.value)


def test_two_fetches_at_once_agree(tmp_path: Path) -> None:
    start = threading.Barrier(2)
    failures: list[BaseException] = []

    def fetch() -> None:
        start.wait()
        try:
            ensure_jars(tmp_path, PINS, download=Repository().download)
        except BaseException as error:  # noqa: BLE001  (handed to the test's thread)
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == {jar.file_name for jar in PINS}


def test_the_command_fails_with_exit_code_3_when_nothing_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLAW_CACHE", str(tmp_path))
    monkeypatch.setattr("claw_r1.local.jars.download_with_jgo", Repository(away={"*"}).download)
    monkeypatch.setattr("claw_r1.local.jars.read_pins", lambda: PINS)
    assert main() == 0
    monkeypatch.setattr("claw_r1.local.jars.read_pins", lambda: [Jar("org.example:gone:1", "00")])
    monkeypatch.setattr("claw_r1.local.jars.download_with_jgo", Repository(away={"org.example:gone:1"}).download)
    assert main() == 3
    assert "org.example:gone:1" in capsys.readouterr().err
