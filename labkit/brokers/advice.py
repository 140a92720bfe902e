"""How to get a RabbitMQ on this system. No I/O."""

DOCKER_DESKTOP = "install Docker Desktop and start it, then run `labkit up` again"
IN_ANY_CASE = "or set LABKIT_BROKER to the amqp:// URL of a broker that is there already"


def how_to_get_one(platform: str, distribution: str = "") -> str:
    """Return what to do on *platform* (``sys.platform``) and *distribution* (ID and ID_LIKE of os-release)."""
    known = distribution.lower().split()
    if platform == "darwin":
        ways = [DOCKER_DESKTOP, "or `brew install rabbitmq` (no need to start it)"]
    elif platform == "win32":
        ways = [DOCKER_DESKTOP]
    elif {"debian", "ubuntu"} & set(known):
        ways = [
            "as root, `labkit image --rootfs` (about 25 s, no Docker needed)",
            "or `sudo apt install rabbitmq-server` and `sudo systemctl disable --now rabbitmq-server`",
            "or `sudo apt install docker.io` with a compose command, and start the engine",
        ]
    elif {"fedora", "rhel", "centos"} & set(known):
        ways = [
            "`sudo dnf install rabbitmq-server` (no need to start it)",
            "or install Docker with its compose plugin, and start the engine",
        ]
    else:
        ways = ["install Docker with its compose plugin, or RabbitMQ's server package"]
    return "\n".join([*ways, IN_ANY_CASE])
