"""Every rule of the service, as pure functions over plain values.

Where to look:

===========  =====================================================================
rules        every rule in one table: id, statement, source
refusals     every way a call can be refused, in one table: code, message, remedy
checks       what a check and an action are: enforce, explain
actions      every action as its ordered tuple of checks
images       the checks about images; who sees what, and as what kind
instances    the checks about instances
accounts     the checks about accounts, roles, regions and quotas
limits       every number: quotas, lengths, sizes
model        the values that rules speak about: Caller, Image, Instance, Facts
warnings     what a call may warn of although it succeeds
shapes       the shape of every request, field by field
pricing      what an image costs
filters      the language of `filter`
orders       the language of `order_by`
imports      which URIs may be imported
===========  =====================================================================

Nothing here reads a clock, a database, a network or a random source.
"""
