"""Deterministic tests of a stream's life: a virtual clock, a scripted model service and caller, explored schedules.

A scenario scripts what the model service's backends and the caller do, each in its own order. A schedule decides in
which order they take turns with each other and with the clock, and whether the app's tasks come to rest in between.
`explorer` tries every schedule up to a depth, then seeded random ones; `invariants` states what must hold in all of
them.
"""
