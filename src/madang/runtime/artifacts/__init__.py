"""Artifacts on disk and on their way: chunk files, transfers over HTTP ranges, the room they may take.

Owns bytes and files. Refuses to decide: `madang.machine.transfer` chooses chunks and sources, `madang.policy.eviction`
what leaves. Called by nodes and sites, which fetch, and by hubs and sites, which serve.
"""
