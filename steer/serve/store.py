"""People who are served by name: what is known of them, in a database.

SQLite where nothing else is asked for, PostgreSQL by its URL. A person belongs to a tenant, and is
read, changed and deleted only by that tenant. Of a person there is a preference (weights, and how
sure they are) or a profile (an edit), numbers both, and no text unless a profile was made with
`keep_evidence=True`. Deleting takes the row; SQLite also overwrites where it stood.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from steer.errors import InputError, SteerError, StoreError
from steer.fields import check_mapping, check_number, check_text
from steer.preference import Preference
from steer.profile import Profile
from steer.profile_file import from_bytes, to_bytes
from steer.serve.kept_preferences import KeptPreferences

LONGEST_NAME = 128
_TRIES = 20

_METADATA = MetaData()
_PEOPLE = Table(
    "steer_people",
    _METADATA,
    Column("tenant", String(LONGEST_NAME), primary_key=True),
    Column("name", String(LONGEST_NAME), primary_key=True),
    Column("preference", Text),
    Column("said", Text),
    Column("profile", LargeBinary),
    Column("version", Integer, nullable=False),
    Column("created", DateTime(timezone=True), nullable=False),
    Column("updated", DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True, eq=False)
class Person:
    """What is known of somebody: a preference, weights that they said, or a profile.

    Attributes:
        preference: Weights, and how sure they are.
        profile: An edit of their own.
        said: The weights that they asked for themselves, if they did; alone where choices tell
            nothing of them.
    """

    preference: Preference | None = None
    profile: Profile | None = None
    said: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        wanted = self.preference is not None or self.said is not None
        if wanted == (self.profile is not None):
            raise InputError("a person: expected a preference or a profile")

    @property
    def weights(self) -> Mapping[str, float] | None:
        """What they are served by: just what they said until they chose, then what both tell.

        None for somebody with a profile.
        """
        if self.preference is None:
            return self.said
        chose = len(self.preference.posterior.differences) > 0
        return self.preference.weights if chose or self.said is None else self.said


class Store:
    """The people of all tenants; safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        """Open a database, and make its table if there is none.

        Args:
            url: As SQLAlchemy has it: `sqlite:///people.sqlite`, `postgresql+psycopg://...`;
                `sqlite://` is kept in memory and lost with it.

        Raises:
            InputError: If it is no such URL.
            StoreError: If the database cannot be opened.
        """
        self._preferences = KeptPreferences()
        try:
            self._engine = _engine(url)
            # What threads send to one connection would lie in one transaction, or break it.
            shared = isinstance(self._engine.pool, StaticPool)
            self._turn: AbstractContextManager[Any] = threading.Lock() if shared else nullcontext()
            _METADATA.create_all(self._engine)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise InputError(
                f"store: expected a database URL such as sqlite:///people.sqlite: {error}"
            ) from error
        except SQLAlchemyError as error:
            raise StoreError(f"the database could not be opened: {_plain(error)}") from error

    def get(self, tenant: str, name: str) -> Person | None:
        """Somebody, or None if there is no such person of this tenant.

        Raises:
            InputError: If the name is not usable.
            StoreError: If the database fails, or holds something else.
        """
        row = self._row(tenant, check_person(name))
        if row is None:  # perhaps erased by another process
            self._preferences.forget((tenant, name))
            return None
        return self._person(tenant, name, row)

    def put(self, tenant: str, name: str, person: Person) -> None:
        """Keep somebody; what was known of them is replaced.

        Raises:
            InputError: If the name is not usable.
            StoreError: If the database fails.
        """
        self._replace(tenant, name, lambda _: person)

    def change(self, tenant: str, name: str, change: Callable[[Person | None], Person]) -> Person:
        """Read, change and write, so that no change of somebody else's is lost.

        Args:
            tenant: Whose person.
            name: Which.
            change: Given what is known, or None, tells what is to be known; called again if
                another change came between. What it raises is passed on, and nothing changes.

        Raises:
            InputError: If the name is not usable.
            StoreError: If the database fails.
        """

        def changed(row: Any) -> Person:
            return change(None if row is None else self._person(tenant, name, row))

        return self._replace(tenant, name, changed)

    def delete(self, tenant: str, name: str) -> bool:
        """Erase somebody; False if there is no such person.

        Raises:
            InputError: If the name is not usable.
            StoreError: If the database fails.
        """
        statement = delete(_PEOPLE).where(*_key(tenant, check_person(name)))
        found = bool(self._run(statement).rowcount)
        self._preferences.forget((tenant, name))
        return found

    def count(self, tenant: str) -> int:
        """How many people a tenant has."""
        statement = select(func.count()).where(_PEOPLE.c.tenant == tenant)
        return int(self._run(statement).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _replace(self, tenant: str, name: str, become: Callable[[Any], Person]) -> Person:
        """Write what is to become of a row, None where there is none, or of what it is by then."""
        check_person(name)
        for _ in range(_TRIES):
            row = self._row(tenant, name)
            person = become(row)
            if self._write(tenant, name, person, None if row is None else row.version):
                return person
        raise StoreError(f"{name!r} was changed by others all the while; try again")

    def _row(self, tenant: str, name: str) -> Any:
        columns = (_PEOPLE.c.preference, _PEOPLE.c.profile, _PEOPLE.c.said, _PEOPLE.c.version)
        return self._run(select(*columns).where(*_key(tenant, name))).one_or_none()

    def _person(self, tenant: str, name: str, row: Any) -> Person:
        preference, profile, said = row.preference, row.profile, row.said
        try:
            return Person(
                None if preference is None else self._preferences.read((tenant, name), preference),
                None if profile is None else from_bytes(profile),
                None
                if said is None
                else check_mapping(json.loads(said), check_text, check_number, "said"),
            )
        except (ValueError, SteerError) as error:
            raise StoreError(f"what is stored of {name!r} is damaged: {error}") from error

    def _write(self, tenant: str, name: str, person: Person, seen: int | None) -> bool:
        """Whether it was written: not if the row is another than was seen."""
        now = datetime.now(timezone.utc)
        values: dict[str, Any] = {
            "preference": None
            if person.preference is None
            else json.dumps(person.preference.to_json()),
            "profile": None if person.profile is None else to_bytes(person.profile),
            "said": None if person.said is None else json.dumps(dict(person.said)),
            "updated": now,
        }
        if seen is None:
            statement: Any = insert(_PEOPLE).values(
                tenant=tenant, name=name, version=0, created=now, **values
            )
        else:
            statement = (
                update(_PEOPLE)
                .where(*_key(tenant, name), _PEOPLE.c.version == seen)
                .values(version=seen + 1, **values)
            )
        try:
            written = bool(self._run(statement).rowcount)
        except IntegrityError:
            return False  # another insert came first
        if written and person.preference is not None:
            self._preferences.keep((tenant, name), values["preference"], person.preference)
        return written

    def _run(self, statement: Any) -> Any:
        try:
            with self._turn, self._engine.begin() as connection:
                result = connection.execute(statement)
                return result.freeze()() if result.returns_rows else result
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StoreError(f"the database failed: {_plain(error)}") from error


def check_person(name: str) -> str:
    """Refuse a name under which nobody can be stored.

    Raises:
        InputError: If it is blank, too long, or not printable.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"user: expected a printable name of at most {LONGEST_NAME} characters, got "
            f"{name!r:.80}"
        )
    return name


def absolute_url(url: str) -> str:
    """A database's URL for a process in another folder.

    Raises:
        InputError: If it is no such URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InputError(f"store: expected a database URL: {error}") from error
    file = parsed.database
    if parsed.get_backend_name() != "sqlite" or not file or file.startswith((":", "file:")):
        return url
    return parsed.set(database=str(Path(file).absolute())).render_as_string(hide_password=False)


def _key(tenant: str, name: str) -> tuple[Any, Any]:
    return _PEOPLE.c.tenant == tenant, _PEOPLE.c.name == name


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    in_memory = parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:")
    # One connection for all threads: every other one would see an empty database.
    options: dict[str, Any] = (
        {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}} if in_memory else {}
    )
    engine = create_engine(url, **options)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set(connection: Any, record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA secure_delete = ON")
            cursor.execute("PRAGMA busy_timeout = 5000")
            cursor.close()

    return engine


def _plain(error: SQLAlchemyError) -> str:
    """What the driver says, without the statement and its values, which are a person's."""
    return str(getattr(error, "orig", None) or type(error).__name__)
