"""The stock image's flags, of which our server has some and needs no others."""

import sys

from serving.model_server.__main__ import main

KNOWN = (
    "--model_config_file",
    "--batching_parameters_file",
    "--ssl_config_file",
    "--tensorflow_intra_op_parallelism",
    "--tensorflow_inter_op_parallelism",
)
sys.argv[1:] = [flag for flag in sys.argv[1:] if flag.startswith(KNOWN)]
sys.exit(main())
