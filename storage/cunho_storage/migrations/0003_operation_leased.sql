-- The operations that are being carried out, which are few: whose they are decides what is carried out next.

CREATE INDEX operation_leased ON operation (lease_until) WHERE lease_until IS NOT NULL;
