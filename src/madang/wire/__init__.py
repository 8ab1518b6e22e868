"""What travels between programs: shapes and codecs, pure.

Owns bus messages, the gateway's feed, the node's API, passes between gateways, the tenant API's shapes and the
usage log's framing. Refuses to know sockets, clocks and storage. Ignore unknown fields; refuse unknown kinds.
"""
