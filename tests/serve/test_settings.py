"""Settings come from flags, environment and file, in this order, and every name is known."""

import json
import tomllib
from pathlib import Path

import pytest

from foveate_serve import cli
from foveate_serve.settings import Settings, SettingsError, is_secret, load_settings
from foveate_serve.workers import supervisor
from foveate_serve.workers.supervisor import worker_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "foveate.toml"
    path.write_text('repository = "models"\nmax_batch = 2\nmax_queue = 20\nadmin = true\n', "utf-8")
    return path


def test_flags_win_over_the_environment_which_wins_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_SERVE_MAX_BATCH", "3")
    monkeypatch.setenv("FOVEATE_SERVE_MAX_QUEUE", "30")
    settings = load_settings({"max_queue": "40"}, file)
    assert settings.repository == Path("models")
    assert (settings.max_batch, settings.max_queue, settings.admin) == (3, 40, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_bach = 2", "max_bach: there is no such setting"),
        ("max_batch = 0", "max_batch: 0: Input should be greater than 0"),
        ('address = "here"', "address: 'here': "),
        ('address = "127.0.0.1:80000"', "the port must be 65535 or less"),
        ("max_delay = nan", "max_delay: nan: "),
        ("[version_labels.cats]\nlatest = 1", "version_labels.cats.latest"),
        ("[version_labels.cats]\nCanary = 1", "a label is of at most 63"),
        ("[version_labels.cats]\nstable = 0", "version_labels.cats.stable: 0: "),
        ('version_labels = "cats:stable"', "'cats:stable' is not MODEL:LABEL=VERSION"),
        ('repository_mode = "explicit"\nadmin = false', "explicit needs admin"),
        ("poll_interval = 0", "poll_interval: 0: "),
        ("max_batch = ", "foveate.toml: "),
    ],
)
def test_a_bad_file_is_refused_by_the_settings_name(file: Path, line: str, message: str) -> None:
    file.write_text(f'repository = "models"\n{line}\n', encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load_settings({}, file)
    assert message in str(raised.value)


def test_labels_come_as_a_table_or_as_text(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"cats": {"stable": 3, "canary": 4}, "dogs": {"stable": 1}}
    text = "cats:stable=3, cats:canary=4,dogs:stable=1"
    assert load_settings({"repository": "models", "version_labels": text}).version_labels == wanted
    monkeypatch.setenv("FOVEATE_SERVE_VERSION_LABELS", text)
    assert load_settings({"repository": "models"}).version_labels == wanted
    monkeypatch.delenv("FOVEATE_SERVE_VERSION_LABELS")
    with file.open("a", encoding="utf-8") as toml:
        toml.write("[version_labels]\ncats = {stable = 3, canary = 4}\ndogs.stable = 1\n")
    settings = load_settings({}, file)
    assert settings.version_labels == wanted
    assert tomllib.loads(settings.to_toml())["version_labels"] == wanted


def test_a_missing_file_and_a_missing_repository_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings({}, tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="repository: must be given"):
        load_settings({})


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_SERVE_MAX_BACH", "3")
    with pytest.raises(SettingsError, match="FOVEATE_SERVE_MAX_BACH: there is no such setting"):
        load_settings({"repository": "models"})


def test_the_printed_configuration_gives_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repository", 'a "quoted" folder', "--max-delay", "0.25", "--no-admin"]
    assert cli.main([*arguments, "--print-config"]) == cli.DONE
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["max_delay"] == 0.25
    (tmp_path / "printed.toml").write_text(printed, encoding="utf-8")
    assert load_settings({}, tmp_path / "printed.toml") == load_settings(
        {"repository": 'a "quoted" folder', "max_delay": "0.25", "admin": False}
    )


def test_every_setting_has_a_flag_that_says_what_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        flag = not is_secret(name) and name != "models"
        assert (f"--{name.replace('_', '-')} " in text) is flag
        assert field.description


def test_a_secret_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "correct-horse-battery"  # noqa: S105 - made up
    monkeypatch.setenv("FOVEATE_SERVE_TOKEN", secret)
    settings = load_settings({"repository": "models"})
    assert settings.token is not None
    assert settings.token.get_secret_value() == secret
    assert secret not in f"{settings!r} {settings}"
    assert cli.main(["--repository", "models", "--print-config"]) == cli.DONE
    printed = capsys.readouterr().out
    assert "# token = (secret)" in printed
    assert secret not in printed
    monkeypatch.setenv("FOVEATE_SERVE_TOKEN", "short-secret")
    with pytest.raises(SettingsError) as raised:
        load_settings({"repository": "models"})
    assert "short-secret" not in str(raised.value)
    assert str(raised.value).startswith("token: ")


@pytest.mark.parametrize("alone", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_the_parts_of_tls_go_together(alone: str) -> None:
    with pytest.raises(SettingsError, match="tls_certificate and"):
        load_settings({"repository": "models", alone: "file.pem"})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--repository", "models", "--max-batch", "many"], 2, "max_batch: 'many': "),
        (["--repository", "no-such-folder"], 1, "there is no folder no-such-folder"),
        (["--repository", "s3://k:pw@bucket"], 2, "repository: s3://***@bucket: a URL holds no"),
        (["--repository", "ftp://host/models"], 2, "there is no scheme 'ftp'"),
        (["--repository", "file:///no/such"], 1, "file:///no/such: there is no such folder"),
    ],
)
def test_a_bad_start_says_why(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    assert cli.main(arguments) == code
    output = capsys.readouterr()
    assert message in output.err
    assert not output.out


MODELS = """
max_batch = 4
preferred_batches = [2, 4]
[models.first]
max_batch = 16
priority_queues = [8, 64]
[models."second.one"]
instances = 2
preferred_batches = []
"""


def test_a_model_has_its_own_settings_and_for_the_rest_the_servers(file: Path) -> None:
    file.write_text(f'repository = "models"{MODELS}', encoding="utf-8")
    settings = load_settings({"max_delay": "0.5"}, file)
    first, second, other = (settings.of(name) for name in ("first", "second.one", "other"))
    assert (first.max_batch, second.max_batch, other.max_batch) == (16, 4, 4)
    assert (first.instances, second.instances, other.instances) == (1, 2, 1)
    assert first.priority_queues == (8, 64)
    assert second.preferred_batches == ()
    assert first.preferred_batches == other.preferred_batches == (2, 4)
    assert first.max_delay == second.max_delay == other.max_delay == 0.5


def test_the_settings_of_models_are_printed_and_read_again(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(f'repository = "models"{MODELS}', encoding="utf-8")
    assert cli.main(["--config", str(file), "--print-config"]) == cli.DONE
    printed = capsys.readouterr().out
    # Only what was set stands there: the rest is still the server's.
    assert tomllib.loads(printed)["models"] == tomllib.loads(MODELS)["models"]
    (tmp_path / "printed.toml").write_text(printed, encoding="utf-8")
    assert load_settings({}, tmp_path / "printed.toml") == load_settings({}, file)


def test_workers_get_the_settings_of_models_as_they_were_set(file: Path) -> None:
    file.write_text(f'repository = "models"{MODELS}', encoding="utf-8")
    settings = load_settings({"workers": "2", "engine_threads": "1", "image_threads": "1"}, file)
    values = worker_settings(settings, settings.address)
    assert Settings(**json.loads(json.dumps(values))) == settings


def test_the_instances_of_a_model_share_its_workers_cores(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "count_cores", lambda: 8)
    file.write_text(
        'repository = "models"\n[models.a]\ninstances = 2\n[models.b]\nmax_batch = 2\n'
        "[models.c]\ninstances = 2\nengine_threads = 3\n[models.d]\nengine_threads = 0\n",
        encoding="utf-8",
    )
    settings = load_settings({"workers": "2"}, file)
    own = Settings(**worker_settings(settings, settings.address))
    assert {name: own.of(name).engine_threads for name in "abcd"} == {
        "a": 2,
        "b": 4,
        "c": 3,
        "d": 4,
    }
    assert own.image_threads == 4


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("max_bach = 2", "models.m.max_bach: there is no such setting"),
        ("instances = 0", "models.m.instances: 0: Input should be greater than 0"),
        ("address = 'here'", "models.m.address: there is no such setting"),
        ("preferred_batches = [2, 9]", "models.m.preferred_batches: 9; the limit is 8, max_batch"),
        (
            "priority_queues = [4, 4]\ndefault_priority = 3",
            "models.m.default_priority: 3; the limit is 2",
        ),
    ],
)
def test_a_bad_setting_of_a_model_is_refused_by_its_name(
    file: Path, lines: str, message: str
) -> None:
    file.write_text(f'repository = "models"\n[models.m]\n{lines}\n', encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load_settings({}, file)
    assert message in str(raised.value)


def test_settings_of_a_model_that_the_repository_has_not_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "foveate.toml"
    file.write_text(f'repository = "{tmp_path}"\n[models.colors]\nmax_batch = 2\n', "utf-8")
    assert cli.main(["--config", str(file)]) == cli.WRONG_USAGE
    assert "models.colors: the repository has no such model" in capsys.readouterr().err


def test_lists_are_flags_and_variables_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_SERVE_PRIORITY_QUEUES", "4,16")
    settings = load_settings({"repository": "models", "preferred_batches": "2,8"})
    assert (settings.priority_queues, settings.preferred_batches) == ((4, 16), (2, 8))
    with pytest.raises(SettingsError, match=r"preferred_batches\.1: 'many': "):
        load_settings({"repository": "models", "preferred_batches": "2,many"})
