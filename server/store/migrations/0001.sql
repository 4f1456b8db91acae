-- 0001: first light. Times are Unix milliseconds, expiries included. actor and
-- time say who wrote the row last, and when. Columns marked "sealed" hold
-- AES-256-GCM under the column key, bound to their table, column and row.
-- Only what SQLite and PostgreSQL both understand is used, but for STRICT and
-- the spelling of the types, which the dialect translates.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value BLOB NOT NULL,
  actor TEXT NOT NULL,
  time  INTEGER NOT NULL
) STRICT;

-- The root and the three issuing CAs; key is an hsm blob.
CREATE TABLE authorities (
  name        TEXT PRIMARY KEY,
  certificate BLOB NOT NULL,
  key         BLOB NOT NULL,
  actor       TEXT NOT NULL,
  time        INTEGER NOT NULL
) STRICT;

CREATE TABLE groups (
  name  TEXT PRIMARY KEY,
  epoch INTEGER NOT NULL,
  actor TEXT NOT NULL,
  time  INTEGER NOT NULL
) STRICT;

-- Security codes of the groups; code is sealed.
CREATE TABLE codes (
  group_name TEXT NOT NULL REFERENCES groups (name),
  epoch      INTEGER NOT NULL,
  code       BLOB NOT NULL,
  actor      TEXT NOT NULL,
  time       INTEGER NOT NULL,
  PRIMARY KEY (group_name, epoch)
) STRICT;

-- Hardware, by the SHA-256 of its public identity key. Rows are never removed.
CREATE TABLE devices (
  id    BLOB PRIMARY KEY,
  spki  BLOB,
  level TEXT NOT NULL,
  actor TEXT NOT NULL,
  time  INTEGER NOT NULL
) STRICT;

-- common_key is sealed, and NULL once the terminal is removed.
CREATE TABLE terminals (
  name       TEXT PRIMARY KEY,
  kind       TEXT NOT NULL CHECK (kind IN ('terminal', 'gate')),
  group_name TEXT NOT NULL REFERENCES groups (name),
  service    TEXT NOT NULL,
  state      TEXT NOT NULL CHECK (state IN ('expected', 'enrolled', 'removed')),
  device     BLOB REFERENCES devices (id),
  level      TEXT NOT NULL,
  common_key BLOB,
  created    INTEGER NOT NULL,
  enrolled   INTEGER NOT NULL,
  seen       INTEGER NOT NULL,
  actor      TEXT NOT NULL,
  time       INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX terminals_device ON terminals (device) WHERE state = 'enrolled';

-- endpoints is a JSON array of host:port, in the order to try them.
CREATE TABLE services (
  name      TEXT PRIMARY KEY,
  gate      TEXT NOT NULL REFERENCES terminals (name),
  endpoints TEXT NOT NULL,
  actor     TEXT NOT NULL,
  time      INTEGER NOT NULL
) STRICT;

-- A DNS name or IP address belongs to one service, so that no gate can be
-- certified under another one's name.
CREATE TABLE service_names (
  name    TEXT PRIMARY KEY,
  service TEXT NOT NULL REFERENCES services (name),
  place   INTEGER NOT NULL,
  actor   TEXT NOT NULL,
  time    INTEGER NOT NULL
) STRICT;

-- One management record per credential. serial is its newest certificate;
-- operation and operated are what was done last, and when.
CREATE TABLE credentials (
  id        TEXT PRIMARY KEY,
  kind      TEXT NOT NULL,
  service   TEXT NOT NULL REFERENCES services (name),
  subject   TEXT NOT NULL,
  usage     TEXT NOT NULL,
  transfer  TEXT NOT NULL,
  chip_only INTEGER NOT NULL,
  serial    BLOB,
  expires   INTEGER NOT NULL,
  state     TEXT NOT NULL CHECK (state IN ('ordered', 'active', 'refused', 'withdrawn', 'revoked')),
  operation TEXT NOT NULL,
  operated  INTEGER NOT NULL,
  actor     TEXT NOT NULL,
  time      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX credentials_place ON credentials (service, subject, usage) WHERE state IN ('ordered', 'active');

-- Which device has a credential, and with which certificate: after a renewal
-- they may differ between devices.
CREATE TABLE holdings (
  credential TEXT NOT NULL REFERENCES credentials (id),
  device     BLOB NOT NULL REFERENCES devices (id),
  terminal   TEXT NOT NULL REFERENCES terminals (name),
  since      INTEGER NOT NULL,
  origin     TEXT NOT NULL CHECK (origin IN ('issue', 'copy', 'move')),
  source     BLOB,
  serial     BLOB,
  state      TEXT NOT NULL CHECK (state IN ('active', 'ended')),
  actor      TEXT NOT NULL,
  time       INTEGER NOT NULL,
  PRIMARY KEY (credential, device)
) STRICT;
CREATE INDEX holdings_terminal ON holdings (terminal);

-- Everything the issuing CAs have signed. Exactly one of terminal and
-- credential is set, or none: this server's own certificate.
CREATE TABLE certificates (
  serial     BLOB PRIMARY KEY,
  issuer     TEXT NOT NULL REFERENCES authorities (name),
  terminal   TEXT,
  credential TEXT,
  device     BLOB,
  der        BLOB NOT NULL,
  not_after  INTEGER NOT NULL,
  revoked    INTEGER,
  reason     INTEGER,
  actor      TEXT NOT NULL,
  time       INTEGER NOT NULL
) STRICT;
CREATE INDEX certificates_terminal ON certificates (terminal) WHERE terminal IS NOT NULL;
CREATE INDEX certificates_credential ON certificates (credential) WHERE credential IS NOT NULL;
CREATE INDEX certificates_revoked ON certificates (issuer, not_after) WHERE revoked IS NOT NULL;

-- Orders to terminals. serial is the certificate made for the command.
CREATE TABLE commands (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  id         BLOB NOT NULL UNIQUE,
  terminal   TEXT NOT NULL REFERENCES terminals (name),
  kind       TEXT NOT NULL,
  credential TEXT,
  body       BLOB NOT NULL,
  serial     BLOB,
  state      TEXT NOT NULL CHECK (state IN ('pending', 'done', 'refused', 'unknown', 'withdrawn')),
  detail     TEXT NOT NULL,
  created    INTEGER NOT NULL,
  settled    INTEGER NOT NULL,
  actor      TEXT NOT NULL,
  time       INTEGER NOT NULL
) STRICT;
CREATE INDEX commands_pending ON commands (terminal, seq) WHERE state = 'pending';
CREATE INDEX commands_credential ON commands (credential) WHERE state = 'pending';

-- The list in force of each issuer.
CREATE TABLE crls (
  issuer TEXT PRIMARY KEY REFERENCES authorities (name),
  number INTEGER NOT NULL,
  der    BLOB NOT NULL,
  issued INTEGER NOT NULL,
  next   INTEGER NOT NULL,
  actor  TEXT NOT NULL,
  time   INTEGER NOT NULL
) STRICT;

CREATE TABLE bundles (
  id         BLOB PRIMARY KEY,
  kind       TEXT NOT NULL,
  group_name TEXT NOT NULL REFERENCES groups (name),
  epoch      INTEGER NOT NULL,
  terminal   TEXT,
  issued     INTEGER NOT NULL,
  actor      TEXT NOT NULL,
  time       INTEGER NOT NULL
) STRICT;

-- Append only, and held to it.
CREATE TABLE audit (
  seq    INTEGER PRIMARY KEY AUTOINCREMENT,
  time   INTEGER NOT NULL,
  actor  TEXT NOT NULL,
  action TEXT NOT NULL,
  object TEXT NOT NULL,
  detail TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;
CREATE TRIGGER audit_unremoved BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;
