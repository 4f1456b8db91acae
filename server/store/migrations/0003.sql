-- 0003: key copy, complete.

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
