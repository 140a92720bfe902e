"""A broker's virtual hosts and users, as the bench makes and removes them: its own, and nobody else's."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from labkit.brokers.credentials import check_user
from labkit.brokers.management import Management, segment
from labkit.errors import BrokerError
from labkit.settings.settings import BrokerSettings
from labkit.values import check_type, checked_key, checked_name


class Administration(ABC):
    """The verbs for virtual hosts and users. What they make carries a mark; what does not is left alone."""

    @property
    @abstractmethod
    def management_url(self) -> str:
        """The management page's address, without credentials."""

    @abstractmethod
    def _base_settings(self) -> BrokerSettings:
        """Settings of the default virtual host."""

    @abstractmethod
    def settings(self, virtual_host: str | None = None, *, tls: bool = False) -> BrokerSettings:
        """Return settings for *virtual_host*."""

    def vhost(self, name: str) -> BrokerSettings:
        """Make the virtual host *name* if there is none, and return settings for it.

        Raises:
            BrokerError: there is one, and the bench did not make it.
        """
        if not self._has_own_vhost(name):
            self._writing_api().put(f"vhosts/{segment(name)}", {"description": self._mark})
        self.grant(self._base_settings().username, name)
        return self.settings(name)

    def grant(
        self, user: str, virtual_host: str, *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Let *user* do in *virtual_host* what the three patterns allow, by the names of queues and exchanges.

        Nothing given means everything; an empty pattern allows nothing.

        Raises:
            BrokerError: the bench did not make that virtual host.
        """
        checked_name("user", user)
        for name, pattern in (("configure", configure), ("write", write), ("read", read)):
            check_type(name, pattern, str)
        self._has_own_vhost(virtual_host)
        allowed = {"configure": configure, "write": write, "read": read}
        self._writing_api().put(f"permissions/{segment(virtual_host)}/{segment(user)}", allowed)

    def add_user(self, name: str, password: str | None = None, *, tag: str = "") -> None:
        """Make the user *name*, who may do nothing yet (:meth:`grant`). One that is there is left alone.

        Args:
            name: The user's name, the same on the whole broker.
            password: None: it can log in by its certificate only.
            tag: What :meth:`users` can find it by; gives no right.

        Raises:
            ConfigurationError: the name is none, or the password is weak.
            BrokerError: there is such a user already.
        """
        check_user(name, password)
        checked_key("tag", tag)
        if self._api().get(f"users/{segment(name)}") is not None:
            raise BrokerError(f"there is a user {name!r} on this broker already, who is left alone: take another name")
        how = {"password_hash": ""} if password is None else {"password": password}
        tags = ",".join(filter(None, (self._mark, tag)))
        self._writing_api().put(f"users/{segment(name)}", {**how, "tags": tags})

    def users(self, tag: str = "") -> list[str]:
        """Return the names of all users, sorted; with a *tag*, those that the bench has made with it."""
        wanted = {self._mark, tag} if checked_key("tag", tag) else set()
        return sorted(str(each["name"]) for each in self._api().get("users") if wanted <= tags_of(each))

    def delete_user(self, name: str) -> bool:
        """Delete the user *name* and return whether there was one; its connections are closed.

        Raises:
            BrokerError: the bench did not make it, or works with it.
        """
        checked_name("name", name)
        shown = self._api().get(f"users/{segment(name)}")
        if shown is None:
            return False
        if name == self._base_settings().username or not self._owns(tags_of(shown)):
            raise BrokerError(f"the user {name!r} was not made by this bench: it is left alone")
        return self._writing_api().delete(f"users/{segment(name)}")

    def delete_vhost(self, name: str) -> bool:
        """Delete the virtual host *name* with all in it, and return whether there was one.

        Raises:
            BrokerError: the bench did not make it.
        """
        return self._has_own_vhost(name) and self._writing_api().delete(f"vhosts/{segment(name)}")

    def vhosts(self) -> list[str]:
        """Return the names of all virtual hosts, sorted."""
        return sorted(str(each["name"]) for each in self._api().get("vhosts"))

    # --- helpers -------------------------------------------------------------------------------

    @property
    def _mark(self) -> str:
        """What virtual hosts and users that the bench makes carry."""
        return "labkit"

    def _owns(self, marks: Collection[str]) -> bool:  # noqa: ARG002 - for a broker that others use, too
        """Return whether what carries *marks* was made by this bench. A broker of its own is all its own."""
        return True

    def _has_own_vhost(self, name: str) -> bool:
        """Return whether there is a virtual host *name*.

        Raises:
            BrokerError: there is one, and the bench did not make it.
        """
        checked_name("virtual_host", name)
        shown = self._api().get(f"vhosts/{segment(name)}")
        if shown is not None and not self._owns({str(shown.get("description"))}):
            raise BrokerError(
                f"the virtual host {name!r} on this broker was not made by this bench, so it is left alone: others may "
                "be using it. Take a broker of your own (`labkit up`), or ask who runs this one"
            )
        return shown is not None

    def _api(self) -> Management:
        settings = self._base_settings()
        return Management(self.management_url, settings.username, str(settings.password.get_secret_value()))

    def _writing_api(self) -> Management:
        """Return the API for what changes the broker."""
        return self._api()


def tags_of(user: dict[str, Any]) -> set[str]:
    """Return a user's tags; RabbitMQ 3.8 showed one text, later ones a list."""
    tags = user.get("tags") or []
    return set(tags.split(",") if isinstance(tags, str) else map(str, tags))
