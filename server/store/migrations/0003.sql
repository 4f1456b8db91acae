-- 0003: key copy, complete. Chips that keys may go to; who held what from when to
-- when, and by which key copy it came; what both ends of a key copy say of it.

-- Chips that keys may go to: the fleet key has signed their storage keys (parent,
-- a TPMT_PUBLIC). id: SHA-256 of it. 'proven': device proved it at enrollment;
-- 'vouched': an administrator says that it is in a chip.
CREATE TABLE chips (
  number    INTEGER PRIMARY KEY AUTOINCREMENT,
  id        BLOB NOT NULL UNIQUE,
  parent    BLOB NOT NULL,
  signature BLOB NOT NULL,
  origin    TEXT NOT NULL CHECK (origin IN ('proven', 'vouched')),
  device    BLOB REFERENCES devices (id),
  actor     TEXT NOT NULL,
  time      INTEGER NOT NULL
) STRICT;

-- Holdings become a history: a row is one span of a device holding a credential.
-- until: when it ended, 0 while it has not. txn: the key copy that brought it;
-- taken: the one that is taking it away. 'transit': the device has given it up in
-- a move, and nobody has proven yet to have it instead.
DROP INDEX holdings_terminal;
ALTER TABLE holdings RENAME TO holdings_first;
CREATE TABLE holdings (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  credential TEXT NOT NULL REFERENCES credentials (id),
  device     BLOB NOT NULL REFERENCES devices (id),
  terminal   TEXT NOT NULL REFERENCES terminals (name),
  since      INTEGER NOT NULL,
  until      INTEGER NOT NULL,
  origin     TEXT NOT NULL CHECK (origin IN ('issue', 'copy', 'move', 'import')),
  source     BLOB,
  txn        BLOB,
  serial     BLOB,
  state      TEXT NOT NULL CHECK (state IN ('active', 'transit', 'ended')),
  taken      BLOB,
  actor      TEXT NOT NULL,
  time       INTEGER NOT NULL
) STRICT;
INSERT INTO holdings (credential, device, terminal, since, until, origin, source, serial, state, actor, time)
  SELECT credential, device, terminal, since, CASE state WHEN 'ended' THEN time ELSE 0 END, origin, source, serial, state, actor, time
  FROM holdings_first ORDER BY since, device;
DROP TABLE holdings_first;
CREATE UNIQUE INDEX holdings_now ON holdings (credential, device) WHERE state <> 'ended';
CREATE INDEX holdings_credential ON holdings (credential, since);
CREATE INDEX holdings_terminal ON holdings (terminal);
CREATE INDEX holdings_txn ON holdings (txn) WHERE txn IS NOT NULL;

-- What terminals were told about a credential, settled or not.
CREATE INDEX commands_about ON commands (credential, kind, terminal) WHERE credential IS NOT NULL;

-- Key copies as their ends report them: a row is one pair of devices in one
-- transaction, since any terminal may speak of any id, but only of itself as an
-- end. Phases are transport.KeycopyPhase, 0: that end has not said anything.
-- *_at: when the codes matched, *_changed: when it came to the phase, as it says;
-- *_told: when it spoke first. *_odd: what it said later that does not go with
-- what it had said. signed is what signature is over, proof whether that is so
-- ('': cannot be known). settled names the end that may act alone, refused says
-- when the other one was first told that it may not. problems are the codes of
-- what does not fit, with blanks between them.
CREATE TABLE keycopies (
  seq             INTEGER PRIMARY KEY AUTOINCREMENT,
  txn             BLOB NOT NULL,
  source          BLOB NOT NULL,
  target          BLOB NOT NULL,
  source_terminal TEXT NOT NULL,
  target_terminal TEXT NOT NULL,
  source_mode     TEXT NOT NULL,
  target_mode     TEXT NOT NULL,
  source_phase    INTEGER NOT NULL,
  target_phase    INTEGER NOT NULL,
  source_at       INTEGER NOT NULL,
  target_at       INTEGER NOT NULL,
  source_changed  INTEGER NOT NULL,
  target_changed  INTEGER NOT NULL,
  source_told     INTEGER NOT NULL,
  target_told     INTEGER NOT NULL,
  source_forced   INTEGER NOT NULL,
  target_forced   INTEGER NOT NULL,
  source_total    INTEGER NOT NULL,
  target_total    INTEGER NOT NULL,
  source_odd      TEXT NOT NULL,
  target_odd      TEXT NOT NULL,
  signature       BLOB,
  signed          BLOB,
  proof           TEXT NOT NULL CHECK (proof IN ('', 'good', 'bad')),
  settled         TEXT NOT NULL CHECK (settled IN ('', 'source', 'target')),
  settled_at      INTEGER NOT NULL,
  refused         INTEGER NOT NULL,
  status          TEXT NOT NULL CHECK (status IN ('open', 'consistent', 'contradiction')),
  problems        TEXT NOT NULL,
  actor           TEXT NOT NULL,
  time            INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX keycopies_ends ON keycopies (txn, source, target);
CREATE INDEX keycopies_source ON keycopies (source, source_told);
CREATE INDEX keycopies_target ON keycopies (target, target_told);
CREATE INDEX keycopies_status ON keycopies (status, seq) WHERE status <> 'consistent';

-- What was in them. A phase says in which one that end spoke of the item, 0: it
-- has not; place is where the source counts it, -1: not known. credential is the
-- ends' word: it may be none of this server's.
CREATE TABLE keycopy_items (
  keycopy         INTEGER NOT NULL REFERENCES keycopies (seq),
  credential      TEXT NOT NULL,
  place           INTEGER NOT NULL,
  source_phase    INTEGER NOT NULL,
  target_phase    INTEGER NOT NULL,
  source_transfer TEXT NOT NULL,
  target_transfer TEXT NOT NULL,
  source_taken    INTEGER NOT NULL,
  target_taken    INTEGER NOT NULL,
  actor           TEXT NOT NULL,
  time            INTEGER NOT NULL,
  PRIMARY KEY (keycopy, credential)
) STRICT;
CREATE INDEX keycopy_items_credential ON keycopy_items (credential);
