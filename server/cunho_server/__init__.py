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
shown            images as reads answer them, as kept bytes
explaining       the facts of an action that is only explained
answering        what happens around every call: credentials, limits, shape, refusals, bugs
call             what is known of one call, from its first byte to its outcome
admission        how many calls are answered at once
pace             how many calls a second an account may make
self_probe       whether this process takes up calls in time
memory           how much memory this process has, and giving it back
identity         who calls, from a token or a client certificate
credentials      what credentials entitle to
tokens           tokens, verified and signed
keys             the keys of tokens: from files or a key set, kept current
fetching         what a URL answers, within a time and a size
certificates     whom a client certificate names
address          the address, kept for the processes
listening        connections that are taken there, TLS and mTLS
issuing          the keys, certificates and tokens of a first installation
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
protoset         the API as one file, for where there is no reflection
healthy          what the health service answers
metrics          what is counted for Prometheus
exposition       the metrics of all processes, told over HTTP
logs             the log, and the lines that calls leave in it
tracing          spans of calls, by OpenTelemetry
admin            channelz and reflection on a port for operators
channel_options  how connections are treated
app              one process of the server, wired
process          that process, as the supervisor starts it
supervisor       the processes, and the embedded PostgreSQL
opening          the database: found, brought up to date, opened
settings         what can be chosen
forms            what addresses, URLs and hosts of settings must be
development      what a start with the development key adds
__main__         the words of the command `cunho-server`
commands         what each command does and prints
output           printing, though nobody may read it or there may be no room
operating        calls of the operator's on a command line
check            whether an installation is sound
probe            whether the server on this machine serves
===============  ===================================================================
"""
