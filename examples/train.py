"""A trainer in ten lines: take a batch, do the optimiser step, acknowledge it.

python examples/train.py KAFKA [RECIPE]
"""

import sys

from trainer_adapter import BatchStream

kafka = sys.argv[1]
recipe = sys.argv[2] if len(sys.argv) > 2 else "example"

with BatchStream(recipe, kafka=kafka) as stream:
    batch = stream.next(timeout=60)
    for number, tokens in enumerate(batch.rows(batch.token_ids)):
        trained = int(batch.rows(batch.loss_mask)[number].sum())
        print(f"sample {number}: {len(tokens)} tokens, {trained} trained, advantage {batch.advantage[number]:+.3f}")
    # … the optimiser step …
    batch.commit(policy_version=(stream.policy_version or 0) + 1)
    print(f"batch {stream.cursor()} of {recipe} is trained")
