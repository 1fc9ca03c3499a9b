"""PostgreSQL behind plain values: no Peewee object and no driver object leaves this package.

Where to look:

============  =====================================================================
tables        Peewee models: the only place that names tables and columns
statements    queries composed once from the models, executed prepared
database      connections, transactions, and what the database's errors mean
migrations/   the schema, as numbered SQL files, and `migrate`, which applies them
conditions    filters, orders and pages as Peewee expressions
pages         the first rows that match, region by region
images        reads and writes of images
shares        reads and writes of image shares
instances     reads and writes of instances
operations    reads and writes of operations, and their leases
accounts      reads and writes of accounts, their regions and quotas
regions       reads and writes of regions, zones and instance types
facts_of      what the rules want to know of several nouns at one moment
secrets       what the servers of one database share in secret
requests      answers kept for request ids
deadlines     how much time the call at hand has left for its statements
soundness     what must be true of the rows, and no constraint can enforce
installation  whether PostgreSQL, schema and rights are as they should be
embedded      the PostgreSQL that the service runs by itself
============  =====================================================================

Locks are taken in one order everywhere: request_log, account_region (sorted by account and region), image (sorted by
id), image_share, instance, operation. Only a mutation of one write locks its basis before it claims its request id.
"""
