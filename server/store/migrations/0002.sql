-- 0002: key storage in the field. What a terminal must prove of its key storage,
-- security codes that are replaced, keys of stores that are given back.

-- attest: 'none', or 'required': enrollment needs proof of a TPM, and the bundle
-- leaves the security code out.
ALTER TABLE terminals ADD COLUMN attest TEXT NOT NULL DEFAULT 'none';

-- SHA-256 of the endorsement key that a device proved; NULL: it proved none. root
-- is the public storage root key of that chip (TPMT_PUBLIC): keys for it are
-- wrapped to that.
ALTER TABLE devices ADD COLUMN endorsement BLOB;
ALTER TABLE devices ADD COLUMN root BLOB;
CREATE INDEX devices_endorsement ON devices (endorsement);
CREATE INDEX devices_root ON devices (root);

-- 'active': given to terminals and accepted; 'retired': terminals were told to
-- forget it.
ALTER TABLE codes ADD COLUMN state TEXT NOT NULL DEFAULT 'active';

-- Stores whose key a terminal has lost and asks back. id is hexadecimal; wrap is
-- the store key under our recovery key, as the terminal kept it, in its wire
-- encoding; recipient is the terminal's key that the answer is sealed to; origin
-- is the device that wrapped it, device the one that asks.
CREATE TABLE recoveries (
  id        TEXT PRIMARY KEY,
  terminal  TEXT NOT NULL REFERENCES terminals (name),
  device    BLOB NOT NULL REFERENCES devices (id),
  origin    BLOB NOT NULL,
  wrap      BLOB NOT NULL,
  recipient BLOB NOT NULL,
  state     TEXT NOT NULL CHECK (state IN ('asked', 'approved', 'denied', 'released', 'taken', 'given-up')),
  asked     INTEGER NOT NULL,
  decided   INTEGER NOT NULL,
  address   TEXT NOT NULL,
  actor     TEXT NOT NULL,
  time      INTEGER NOT NULL
) STRICT;
CREATE INDEX recoveries_terminal ON recoveries (terminal);

-- How often the device's store had lost what it had, as it said last; NULL: it
-- has not said so yet.
ALTER TABLE devices ADD COLUMN incarnation INTEGER;

-- Which terminal has the security code of which epoch of its group: 'ordered' to
-- take it, 'held', 'refused' (it said why), 'retiring' (ordered to forget it).
CREATE TABLE code_holders (
  terminal TEXT NOT NULL REFERENCES terminals (name),
  epoch    INTEGER NOT NULL,
  state    TEXT NOT NULL CHECK (state IN ('ordered', 'held', 'refused', 'retiring')),
  actor    TEXT NOT NULL,
  time     INTEGER NOT NULL,
  PRIMARY KEY (terminal, epoch)
) STRICT;
INSERT INTO code_holders (terminal, epoch, state, actor, time)
  SELECT name, 1, 'held', actor, time FROM terminals WHERE kind = 'terminal' AND state = 'enrolled';
