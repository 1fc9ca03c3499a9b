"""The gRPC shell: turns calls into questions to the rules, and answers into messages. No rule is decided here.

Where to look:

===============  ===================================================================
images           ImageService
instances        InstanceService
operations       google.longrunning.Operations
accounts         AccountService
quotas           QuotaService
regions          RegionService
servicer         what the servicers share: caller, transaction, request ids, pages
making           new images and the operations that make them
explaining       the facts of an action that is only explained
answering        what happens around every call: credentials, shape, refusals, bugs
identity         who calls, from signed tokens
shape            the shape of requests, by the table of the rules
status           a refusal as google.rpc.Status
messages         stored values as messages
page_tokens      signed tokens of pages
ids              ids that the server hands out
work             carries out operations, leased and fenced
ledger           the compute driver without a hypervisor
catalog          the catalogue file
apply            applies a catalogue to the database
reflection       what lets grpcurl work without the protos
app              the server, wired
settings         what can be chosen
development      what a start with the development key adds
===============  ===================================================================
"""
