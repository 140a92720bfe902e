"""Set this machine up for labkit and do one of: lab, test, check, soak, clean.

    python3 bootstrap.py lab      a learner's bench: broker, notebooks, JupyterLab
    python3 bootstrap.py test     everything CI proves, on a broker of its own
    python3 bootstrap.py check    format, lint, types, unit tests but for the slow ones; no broker
    python3 bootstrap.py soak     full counts on every broker version that is here
    python3 bootstrap.py clean    end this checkout's brokers, remove .venv, .lab and caches

Standard library only, and no syntax newer than Python 3.8: an old Python must be able to say that it is too old.
It says what it is about to install. At a terminal it asks before it installs system packages; with YES=1, with
CI set, or without a terminal it does not ask. A second run finds everything there and needs no network.
"""

import ast
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "labkit-installed"
OLDEST = (3, 11)
TESTED = ("3.14", "3.13", "3.12", "3.11")
DISK_NEEDED = 2_000_000_000  # bytes: 0.5 GB of packages, 0.4 GB of broker, room for logs and work
# Stages full of deadlines. In CI, what fails is run once more, and the table says so; never locally.
AGAIN_IN_CI = ("unit", "broker", "lab", "notebooks")
LAST_FAILED = pathlib.Path(".pytest_cache", "v", "cache", "lastfailed")  # pytest's own list
# Tests run side by side, on two cores too: most of them wait for a broker, a deadline or a browser.
ONE_BY_ONE = ("--dist=load", "--maxschedchunk=1")
FIRST_IMPORTS = "import ipykernel.kernelapp, jupyterlab.labapp, jupyter_server.serverapp, labkit.cli, labkit.lab.bench"
COMMANDS = ("lab", "test", "check", "soak", "clean")

GET_PYTHON = {
    "debian": "sudo apt-get install python3 python3-venv   (Debian 12, Ubuntu 24.04 or newer)",
    "fedora": "sudo dnf install python3.12",
    "macos": "brew install python@3.13",
    "windows": "winget install Python.Python.3.13",
    "other": "see https://www.python.org/downloads/",
}
GET_BROKER = {
    "debian": "sudo apt-get install rabbitmq-server, or start Docker",
    "fedora": "sudo dnf install docker-compose moby-engine && sudo systemctl start docker",
    "macos": "brew install rabbitmq, or start Docker Desktop",
    "windows": "start Docker Desktop (https://docs.docker.com/desktop/)",
    "other": "start a Docker engine, or install RabbitMQ 3.10 or newer",
}


def say(text=""):
    print(text, flush=True)


def stop(text):
    """End with one clear sentence."""
    sys.stdout.flush()
    sys.exit("labkit: " + text)


def system():
    """Which family's words to use when something has to be installed."""
    if sys.platform == "darwin":
        return "macos"
    if os.name == "nt":
        return "windows"
    names = os_release()
    words = names.get("ID", "") + " " + names.get("ID_LIKE", "")
    if "debian" in words or "ubuntu" in words:
        return "debian"
    return "fedora" if any(word in words for word in ("fedora", "rhel", "centos")) else "other"


def os_release():
    try:
        lines = pathlib.Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return dict((line.split("=", 1)[0], line.split("=", 1)[1].strip('"')) for line in lines if "=" in line)


def is_root():
    return hasattr(os, "geteuid") and os.geteuid() == 0


def asks():
    """A person sits at the terminal and has not said yes beforehand."""
    return not os.environ.get("YES") and not os.environ.get("CI") and sys.stdin.isatty() and sys.stdout.isatty()


def agreed(question):
    if not asks():
        say(question.replace(" [y/N]", "") + " yes")
        return True
    return input(question + " ").strip().lower() in ("y", "yes")


# --- preflight: one line a finding, each with its fix ---------------------------------------------------------------


def use_a_new_enough_python():
    """Go on in the newest Python of this machine that we support, or say how to get one."""
    if sys.version_info >= OLDEST:
        return
    for version in TESTED:
        found = shutil.which("python" + version)
        if found:
            say("python: %s is too old, going on with %s" % (platform.python_version(), found))
            sys.exit(subprocess.call([found, __file__] + sys.argv[1:]))
    stop(
        "Python %s is too old, labkit needs %d.%d or newer: %s"
        % (platform.python_version(), OLDEST[0], OLDEST[1], GET_PYTHON[system()])
    )


def preflight(command):
    say("labkit: setting up for `%s` with Python %s" % (command, platform.python_version()))
    if not os.access(str(ROOT), os.W_OK):
        stop("cannot write into %s: clone the project into a folder of your own" % ROOT)
    free = shutil.disk_usage(str(ROOT)).free
    if free < DISK_NEEDED and not STAMP.exists():
        stop("%.1f GB free in %s, 2 GB needed: free some, or clone elsewhere" % (free / 1e9, ROOT))
    keep_loopback_off_the_proxy()
    if command != "lab":
        return
    if "microsoft" in platform.release().lower():
        say("wsl: open the address printed below in your Windows browser; WSL 2 forwards 127.0.0.1 by itself")
    for port, what in ((5672, "the broker"), (15672, "its management page"), (8888, "JupyterLab")):
        if taken(port):
            say("port %d: taken, so %s gets a free one; `labkit status` shows which" % (port, what))
    if (
        os.name == "posix"
        and sys.platform != "darwin"
        and not os.environ.get("DISPLAY")
        and not os.environ.get("WAYLAND_DISPLAY")
    ):
        say("browser: no display here; open the address printed below from your own machine, over ssh -L if it is far")


def keep_loopback_off_the_proxy():
    """A class behind a web proxy must still reach its own broker."""
    proxies = sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
    if not proxies:
        return
    exempt = [part for part in os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")).split(",") if part]
    missing = [host for host in ("127.0.0.1", "localhost") if host not in exempt]
    if missing:
        say("proxy: %s is set; adding %s to NO_PROXY for this run" % (", ".join(proxies), " and ".join(missing)))
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(exempt + missing)


def taken(port):
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- system packages ------------------------------------------------------------------------------------------------


def apt(packages, why):
    """Install Debian packages after saying so; False if that is not possible or not wanted."""
    if not shutil.which("apt-get"):
        return False
    sudo = [] if is_root() else ["sudo"]
    if sudo and not (
        shutil.which("sudo") and (asks() or subprocess.call(["sudo", "-n", "true"], stderr=subprocess.DEVNULL) == 0)
    ):
        return False
    if not agreed("%s: install %s with apt-get%s? [y/N]" % (why, ", ".join(packages), " (sudo)" if sudo else "")):
        return False
    return subprocess.call(sudo + ["sh", "-c", apt_script(packages)]) == 0


def apt_script(packages, policy="/usr/sbin/policy-rc.d"):
    """What a root shell runs: install, and leave no service that starts by itself, now or at the next boot."""
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends " + " ".join(packages)
    lines = []
    if not pathlib.Path(policy).exists():
        # policy-rc.d is Debian's own way to install a server package without starting its service. It is there only for
        # the call, and only where the machine has none. The traps on signals: dash runs none on EXIT after a Ctrl-C,
        # and a policy-rc.d left behind would keep every later service of this machine from starting.
        lines += [
            "quiet() { trap '' INT TERM HUP; }  # a second Ctrl-C must not end the rm",
            "trap 'quiet; rm -f %s' EXIT; trap 'quiet; exit 130' INT; trap 'quiet; exit 143' TERM HUP" % policy,
            "printf '#!/bin/sh\\nexit 101\\n' >%s; chmod +x %s" % (policy, policy),
        ]
    lines.append("%s >/dev/null || { apt-get update -qq && %s >/dev/null; } || exit 1" % (install, install))
    for name in packages:
        if name.endswith("-server"):
            lines.append("! command -v systemctl >/dev/null || systemctl disable -q %s 2>/dev/null || true" % name)
    return "\n".join(lines)


# --- Python packages ------------------------------------------------------------------------------------------------


def fingerprint():
    text = b"".join(
        (ROOT / name).read_bytes() for name in ("requirements-uv.txt", "requirements.txt", "pyproject.toml")
    )
    return hashlib.sha256(text + sys.version.encode() + str(ROOT).encode()).hexdigest()


def make_venv():
    """The virtual environment, with exactly what requirements.txt names; nothing to do the second time."""
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    began = time.monotonic()
    if not PYTHON.exists() or not can_run(PYTHON, "import pip"):
        say("python packages: making .venv")
        shutil.rmtree(str(VENV), ignore_errors=True)
        if not can_run(sys.executable, "import ensurepip") and not apt(
            ["python3-venv"], "python: its venv module is missing"
        ):
            stop("this Python has no venv module: %s" % GET_PYTHON[system()])
        if subprocess.call([sys.executable, "-m", "venv", str(VENV)]):
            stop("python -m venv failed (see above): %s" % GET_PYTHON[system()])
    say("python packages: installing requirements.txt into .venv (about 0.5 GB; 5 s with a near mirror)")
    install_packages()
    STAMP.write_text(wanted)
    say("python packages: ready after %.0f s" % (time.monotonic() - began))


def install_packages():
    """Install requirements.txt and labkit: by uv, or by pip, ten times as slow, where uv cannot be had or fails."""
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-warn-script-location"]
    with_pip = dict(os.environ, PIP_ROOT_USER_ACTION="ignore")
    requirements = ["--require-hashes", "-r", str(ROOT / "requirements.txt")]
    itself = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]

    if subprocess.call(pip + ["--require-hashes", "-r", str(ROOT / "requirements-uv.txt")], env=with_pip) == 0:
        uv = [str(BIN / "uv"), "pip", "install", "--python", str(PYTHON)]
        uv += [] if sys.stderr.isatty() else ["--quiet"]  # at a terminal its progress is seen
        with_uv = dict(pips_settings_for_uv(), **os.environ)
        with contextlib.suppress(OSError):  # a program that cannot be run here
            if subprocess.call(uv + requirements, env=with_uv) == 0 and subprocess.call(uv + itself, env=with_uv) == 0:
                return
    say("python packages: uv cannot install them here (see above); going on with pip, which takes about a minute")
    if subprocess.call(pip + requirements, env=with_pip):
        stop(
            "pip could not install requirements.txt (see above): is a package index reachable? `pip config list` tells"
        )
    if subprocess.call(pip + itself, env=with_pip):
        stop("pip could not install labkit itself (see above)")


# What pip is told: uv's variable for it, and what stands between several values. Constraints are left out: every
# version is pinned already, and uv takes none beside hashes.
SETTINGS_OF_PIP = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}


def pips_settings_for_uv():
    """What this machine's pip is configured to do, a closed network's mirror say, in variables that uv reads."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "config", "list"]
    try:
        listed = subprocess.check_output(command, stderr=subprocess.DEVNULL).decode("utf-8", "replace")
    except (OSError, subprocess.CalledProcessError):
        return {}
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: the best of all indexes; the hashes decide
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if option in SETTINGS_OF_PIP and section in ("global", "install", ":env:"):  # in this order: the last one holds
            variable, between = SETTINGS_OF_PIP[option]
            settings[variable] = between.join(ast.literal_eval(value).split())
    return settings


def can_run(python, code):
    return subprocess.call([str(python), "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


# --- a broker -------------------------------------------------------------------------------------------------------


def is_debian_root():
    return system() == "debian" and is_root() and os_release().get("ID") == "debian"


def agreed_to_unpack():
    """Whether a root directory with Debian's RabbitMQ may be made here, and what makes it is there."""
    tools = [] if shutil.which("mmdebstrap") else ["mmdebstrap"]
    question = "broker: none here; unpack Debian's RabbitMQ into .lab/rootfs (180 MB, about 30 s)? [y/N]"
    return agreed(question) and (not tools or apt(tools, "broker"))


def begin_to_unpack():
    """Where a root directory is the only way to a broker, unpack it while packages install; the process, or None."""
    elsewhere = os.environ.get("LABKIT_BROKER") or os.environ.get("SUDO_UID")
    others = ("docker", "podman", "rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")
    home = ROOT / ".lab"
    if elsewhere or not is_debian_root() or asks() or home.exists() or any(shutil.which(name) for name in others):
        return None  # the way that have_broker() goes, once the packages can tell what is here
    if not agreed_to_unpack():
        return None
    home.mkdir(mode=0o700)
    say("broker: unpacking it while the packages install")
    command = ["bash", str(ROOT / "labkit" / "brokers" / "images" / "build.sh"), "--rootfs", str(home / "rootfs")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def end(process):
    """End what begin_to_unpack() began, and all that it started."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def have_broker(unpacking=None):
    """Make sure that some backend can run; the last resort is one sentence that says how to get one."""
    if unpacking is not None:
        began = time.monotonic()
        can_run(PYTHON, FIRST_IMPORTS)  # the first import of a module compiles it, which has time now
        unpacking.wait()
        say("broker: unpacked (%.0f s after the packages)" % (time.monotonic() - began))
    if is_unpacked() or broker_possible():
        return
    if is_debian_root() and agreed_to_unpack() and labkit("image", "--rootfs") == 0 and broker_possible():
        return
    if system() == "debian" and apt(["rabbitmq-server"], "broker: none here") and broker_possible():
        return
    stop(
        "no RabbitMQ and no container engine here: %s; or set LABKIT_BROKER=amqp://user:password@host/"
        % GET_BROKER[system()]
    )


def is_unpacked():
    """Whether a broker was unpacked into this checkout, and can be run; to ask labkit takes a second."""
    rootfs = ROOT / ".lab" / "rootfs"
    whole = (rootfs / "labkit").is_dir() and (rootfs / "usr" / "lib" / "rabbitmq").is_dir()
    return whole and is_root() and not os.environ.get("LABKIT_BROKER")


def broker_possible():
    # It may pull the broker's image, and says how far it is.
    code = "import functools, sys; from labkit.brokers import is_possible\n"
    code += "sys.exit(not is_possible(functools.partial(print, flush=True)))"
    return subprocess.call([str(PYTHON), "-c", code], cwd=str(ROOT)) == 0


def labkit(*arguments):
    return subprocess.call([str(PYTHON), "-m", "labkit.cli"] + list(arguments), cwd=str(ROOT))


# --- the five commands ----------------------------------------------------------------------------------------------


def run_stages(stages):
    """Run named commands in order, all of them, and end with a table; the result is the worst of them."""
    results = []
    for name, command in stages:
        say("\n=== %s: %s" % (name, " ".join(str(word) for word in command).replace(str(ROOT) + os.sep, "")))
        began = time.monotonic()
        words = [str(word) for word in command]
        code = subprocess.call(words, cwd=str(ROOT))
        verdict = "ok" if code == 0 else "FAILED (exit code %d)" % code
        if code == 1 and name in AGAIN_IN_CI and os.environ.get("CI"):
            failed = failures(words)
            say("\n=== %s: the failed ones once more, one by one, to tell a fault from a busy machine" % name)
            code = subprocess.call(once_more(words, failed), cwd=str(ROOT))
            if code == 0:
                say("\n=== %s: passed at the second try only:" % name)
                for test in failed:
                    say("    " + test)
                verdict = "passed at the second try: %d of its tests, listed above" % len(failed)
        results.append((name, code, time.monotonic() - began, verdict))
    say("\n%-16s %8s  %s" % ("stage", "seconds", "result"))
    for name, _, seconds, verdict in results:
        say("%-16s %8.0f  %s" % (name, seconds, verdict))
    say("%-16s %8.0f" % ("all", sum(seconds for _, _, seconds, _ in results)))
    return max(code != 0 for _, code, _, _ in results)


def failures(words):
    """The tests that failed in the pytest run of these words, as its cache has them."""
    try:
        known = json.loads((ROOT / LAST_FAILED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    where = tuple(word for word in words if word.startswith(("tests", "notebooks")))
    return sorted(name for name in known if name.startswith(where))


def once_more(words, failed):
    """The words that run those tests alone; notebooks as a whole, for a cell needs those before it."""
    side_by_side = (*ONE_BY_ONE, "-n2", "-n3", "-n4", "--dist=loadfile")
    alone = [word for word in words if word not in side_by_side]
    if "--nbval" in words:
        return alone[:-1] + sorted({name.partition("::")[0] for name in failed})
    return alone + ["--last-failed", "--last-failed-no-failures", "none"]


def check_stages(*, whole):
    # Fast things first: a typo should not wait for the types.
    chosen = [] if whole else ["-m", "not soak and not slow"]
    return [
        ("format", [BIN / "ruff", "format", "--check", "."]),
        ("lint", [BIN / "ruff", "check", "."]),
        ("types", [PYTHON, "-m", "mypy"]),
        ("unit", [PYTHON, "-m", "pytest", "-q", "-n2", *chosen, "tests/unit"]),
    ]


def main():
    use_a_new_enough_python()
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        stop("say one of: %s; got %s" % (", ".join(COMMANDS), " ".join(sys.argv[1:]) or "nothing"))
    command, rest = sys.argv[1], sys.argv[2:]
    if command == "clean":
        return clean()
    preflight(command)
    if command == "check":
        make_venv()
        return run_stages(check_stages(whole=False))
    unpacking = begin_to_unpack()
    try:
        make_venv()
        have_broker(unpacking)
    finally:
        end(unpacking)
    if command == "lab":
        # From here on Ctrl-C belongs to labkit, which ends everything that it started.
        if os.name == "posix":
            os.chdir(str(ROOT))
            os.execv(str(PYTHON), [str(PYTHON), "-m", "labkit.cli", "lab"] + rest)
        return labkit("lab", *rest)
    pytest = [PYTHON, "-m", "pytest", "-q", "--durations=5"]
    if command == "soak":
        return run_stages([("soak", [*pytest, "-m", "soak", "tests", *rest])])
    return run_stages(
        [
            *check_stages(whole=True),
            ("rules", [*pytest, "tests/test_notebook_rules.py", "tests/test_terms.py"]),
            ("broker", [*pytest, "-n4", *ONE_BY_ONE, "tests/broker", *rest]),
            ("lab", [*pytest, "-n3", *ONE_BY_ONE, "tests/lab", *rest]),
            ("notebooks", [*pytest, "-n2", "--dist=loadfile", "--nbval", "--nbval-current-env", "notebooks"]),
        ]
    )


def clean():
    if PYTHON.exists():
        for bench in [ROOT / ".lab"] + sorted((ROOT / ".lab").glob("test*")):
            labkit("down", "--home", str(bench))
    for name in (".venv", ".lab", "build", "dist", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"):
        shutil.rmtree(str(ROOT / name), ignore_errors=True)
    say("clean: the brokers of this checkout are down; .venv, .lab and the caches are gone; work/ is yours and stays")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nlabkit: interrupted")
