"""`liveshelf features`: what is declared, what stands in the store, and whether the two and the log agree."""

VERBS = {
    "list": "List every declared feature, and the feature versions that are kept up to date.",
    "show": "Show a shopper's or an item's features as the scorer sees them.",
    "check": "Check a feature settings file, also against a sample of the shop's events.",
    "suggest": "Propose a feature settings file from a sample of the shop's events.",
    "rebuild": "Make changed features a new version, folded from the whole log.",
    "retire": "Stop keeping a feature version up to date.",
    "verify": "Fold the log again and compare with the store, and with what was served.",
    "history": "Write the features' history, for Feast's get_historical_features.",
}

HELP = """Features: declared once in a settings file, folded from the event log, the same in training and serving.

The file is LIVESHELF_FEATURES_FILE, or one that Liveshelf ships. A changed file is a new feature version, named by eight hex digits of what
it declares. From a shop's own events to features in use:

    liveshelf features suggest events.jsonl -o features.yml

    liveshelf features check features.yml --sample events.jsonl

    liveshelf features rebuild --file features.yml

    liveshelf features verify"""
