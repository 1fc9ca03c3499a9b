-- The bytes of an image's message, kept beside its row. NULL, or of a version before, until a read makes them anew:
-- servers that know nothing of the column may run beside those that do.

ALTER TABLE image ADD COLUMN message BYTEA;
