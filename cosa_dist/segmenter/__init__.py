"""The second stage of CoSA-MS: a network that is trained on masks as if they were true."""
