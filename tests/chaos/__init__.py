"""The chaos harness: a seeded stream through the real loop under kill -9, then every row against an undisturbed fold of the log.

traffic ─▶ sender ─HTTP─▶ collector ─▶ kafka ─▶ two agents ─▶ store
                              ▲          ▲          ▲          ▲
schedule ─▶ run ──────────────┴─ kill -9 ┴──────────┴──────────┘     loop.py restarts each at once
            └─▶ compare: accepted events against the log, the log's fold against the store
"""
