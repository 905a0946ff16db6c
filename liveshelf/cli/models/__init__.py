"""`liveshelf models`: what became of each model version, and which one answers whom."""

VERBS = {
    "list": "List model versions: outcome, reason and metrics of each, and which one is live.",
    "show": "Show which version answers whom, or one version's release.",
    "diff": "Set two versions side by side: what made them, and which is better.",
    "promote": "Have a version answer everybody, or a share of the shoppers as a canary.",
    "rollback": "End the canary; without one, go back to the version before.",
    "pin": "Hold a version: newer ones wait.",
}
DEFAULT = "list"

HELP = """Model versions. By default the newest one that the trainer promotes takes over by itself; here people decide.

Scorers follow within half a second, no request fails, and each is answered by one version from beginning to end. What is held stands in
serving.json in the model directory, and as the labels `stable` and `canary` in the model server (ours, or a TensorFlow Serving that serves
nothing else). A canary answers the same shoppers each time; `show` says how it stands by what they did, and with
LIVESHELF_CANARY_AUTOMATIC=true the trainer decides by that:

    liveshelf models promote 8 --canary 0.1

    liveshelf models promote 8

    liveshelf models show

    liveshelf models rollback

    liveshelf models pin --off"""
