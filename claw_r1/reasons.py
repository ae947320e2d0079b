"""Every reason code, and what it means: the words behind the labels of errors, outcomes, masks, drops and faults.

The code that decides writes the reason; a test collects those from the source and fails for one that is not explained here.
"""

from typing import Final

from claw_r1.rules import FIELDS

GATEWAY_ERRORS: Final = {
    "ambiguous_key": "the call carries two keys, and one must be left out",
    "body_timeout": "the request's body stopped coming",
    "body_too_large": "the request's body is above CLAW_GATEWAY_MAX_BODY_BYTES",
    "broker_unavailable": "no step can be recorded now, so no call is served",
    "engine_aborted": "the engine gave the call up, as it does when its weights change; it may be sent again",
    "engine_broke_off": "the engine ended its answer in the middle",
    "engine_exists": "another engine has this id already",
    "engine_refused": "the engine answered with an error, which the message holds",
    "engine_timeout": "the engine was silent for CLAW_GATEWAY_READ_TIMEOUT",
    "engine_unavailable": "no engine answered",
    "engines_paused": "every engine that may take the call is paused, for longer than CLAW_GATEWAY_PAUSE_HOLD",
    "expired_key": "the key has expired",
    "idempotency_mismatch": "an Idempotency-Key was sent again with another request",
    "internal": "the gateway failed; its log says why",
    "invalid_body": "the body is JSON, but not an object",
    "invalid_field": "a field of the body has a wrong value; `param` names it",
    "invalid_id": "an id has a form that is not allowed",
    "invalid_json": "the body is not JSON",
    "invalid_key": "the key is none of ours, or was not signed with a secret of CLAW_SECRET",
    "invalid_msgpack": "the body is not msgpack",
    "joined_call_lost": "the call that this one repeats ended without an answer; it may be sent again",
    "key_body_too_large": "the body is above CLAW_GATEWAY_KEY_BODY_BYTES",
    "key_calls": "the key has CLAW_GATEWAY_KEY_CALLS calls in flight",
    "key_max_tokens": "the call asks for more tokens than CLAW_GATEWAY_KEY_MAX_TOKENS",
    "key_rate": "the key makes more calls a second than CLAW_GATEWAY_KEY_RATE",
    "media_refused": "a message names media that are not fetched: by the kind of the URL, its address, or what came",
    "media_too_large": "a message holds media above CLAW_GATEWAY_MEDIA_BYTES, or too many of them",
    "media_unavailable": "media that a message names could not be fetched",
    "method_not_allowed": "the path takes another method",
    "missing_field": "the body lacks a field; `param` names it",
    "model_not_found": "the run maps model names to engines, and not this one",
    "no_demand": "trainers want no new group now: as many as they want are open, ready or cut",
    "no_engine": "no engine may take the call: none is configured, or those of the model are gone or draining",
    "no_key": "the call carries no key, and its path needs one",
    "no_prompt": "neither the path nor the key names the prompt, and the trajectory is not known here",
    "no_reward_function": "the gateway was started without a reward function",
    "no_trajectory": "neither the path nor the key names a trajectory",
    "not_implemented": "the path exists upstream and is not served",
    "not_json": "the body came without the header content-type: application/json, or application/msgpack where that is taken",
    "not_recorded": "the broker did not acknowledge, so the call has no result; it may be sent again",
    "other_prompt": "the key is for another prompt",
    "other_engine": "the key is for a run no policy of which this engine serves",
    "other_run": "the trajectory belongs to another run than this request or its key says",
    "other_trajectory": "the key is for another trajectory",
    "record_too_large": "what was sent does not fit into one record",
    "reply_size": "the engine's reply is above the bound",
    "spool_failed": "the broker is away and the spool's disk takes nothing, or not in time",
    "spool_full": "the broker is away and the spool holds CLAW_GATEWAY_SPOOL_BYTES",
    "reward_failed": "the reward function raised an error or gave no number",
    "reward_timeout": "the reward function was slower than CLAW_GATEWAY_REWARD_TIMEOUT",
    "step_too_large": "the step does not fit into one record",
    "tables_unread": "the gateway has only begun, and does not know yet how engines and runs are set up",
    "too_many_calls": "CLAW_GATEWAY_MAX_IN_FLIGHT calls are in flight",
    "too_many_engines": "the fleet has as many engines as it takes",
    "too_many_requests": "a bound was reached; the request may be sent again",
    "too_many_scores": "too many calls wait for the reward function",
    "unknown_engine": "there is no such engine; GET /engines lists them",
    "unknown_response": "no reply of this id is known here",
    "unknown_route": "there is no such path",
    "unknown_trajectory": "the trajectory is not known here; send its prompt_uid",
    "unparsable_reply": "the engine's reply is not what the API promises",
    "wrong_scope": "the key is not for this path",
    "unsupported": "a field asks for what this gateway does not do",
}
"""`error.code` of a refusal."""

CAPTURE_FAULTS: Final = {
    "bad_routed_experts": "the engine's routed experts are no array of tokens x layers x experts",
    "bad_token_ids": "the engine's token ids are not integers from 0 to 2³²-1",
    "completion_tokens_differ": "the engine counted other completion tokens than it gave ids",
    "engine_error": "the engine sent an error in the middle of its stream",
    "failed": "the call got no reply",
    "hung_up": "the caller went away before the end",
    "ids_log_probs_differ": "there are more or fewer log-probs than token ids",
    "log_prob_missing": "a token came without its log-prob",
    "no_log_probs": "the response came without log-probs",
    "no_prompt_ids": "the engine gave no token ids of the prompt",
    "no_token_ids": "the engine gave no token ids of the response",
    "no_usage": "the engine did not count tokens",
    "partial": "the response ended before the engine said so",
    "prompt_tokens_differ": "the engine counted other prompt tokens than it gave ids",
    "stream_broken": "the engine's stream ended before its last event",
    "text_only": "the step was imported from a log that has texts and no token ids",
    "too_large": "the step does not fit into one record",
    "unexpected_choice": "the engine sent a choice that was not asked for, or one twice",
    "unparsable_chunk": "a part of the engine's stream is not what the API promises",
    "unparsable_reply": "the engine's reply is not what the API promises",
}
"""`steps.capture_reasons`: a step with one of these is stored and never trained. `status_NNN` is the engine's own error, and
the code of a gateway error stands for a call that ended with it."""

OUTCOMES: Final = {
    "aborted": "the trajectory ended as aborted, and the recipe discards those",
    "annotation_masked": "a required annotation did not come within annotations.timeout: the trajectory counts, untrained",
    "annotation_missing": "a required annotation did not come within annotations.timeout",
    "cancelled": "the group was cancelled",
    "complete": "the trajectory is in the group's samples",
    "completed": "the trajectory ended as completed, and the recipe discards those",
    "context_lost": "a step's prompt cannot be restored from its parents",
    "decided": "every recipe that concerns the group has decided, and the group is closed",
    "extra_group": "late trajectories of a group formed a further one",
    "failed": "the trajectory ended as failed, and the recipe discards those",
    **{field.reason: f"the recipe's filter on {field.name} does not hold" for field in FIELDS},
    "idle": "the group was ready when nothing came for group.idle",
    "in_batch": "a decision came too late: its group is in the batch that `batch` says",
    "incomplete": "a started step never arrived",
    "left_out": "a decision came too late: the cut of the batch that `batch` says had left its group out",
    "max_age": "the group was ready at group.max_age",
    "never_opened": "no step, trajectory or group opened what the fact is about",
    "no_pair": "the best trajectory of the group is not better than the worst by more than pick.min_gap",
    "no_recipe": "no recipe concerned the group",
    "not_emitted": "a decision came too late: what it would bring back was left out when its group was emitted",
    "not_ended": "the trajectory had not ended",
    "not_picked": "the recipe picks others of the group",
    "nothing_picked": "no trajectory of the group has a reward of pick.min_reward",
    "nothing_to_train": "every response token of the trajectory, or every trajectory of the group, is masked",
    "review": "the group is ready and waits for a person to keep or veto it",
    "review_expired": "nobody decided on the held group within review_deadline",
    "reward_masked": "a required reward did not come within rewards.timeout: the trajectory counts, untrained",
    "reward_missing": "a required reward did not come within rewards.timeout",
    "reward_not_finite": "the reward is infinite, no number, or above 1e38",
    "run_purged": "the run is to be forgotten",
    "size": "the group is whole",
    "steps_missing": "started steps of the trajectory had not arrived",
    "straggler": "the trajectory was not done when its group was decided",
    "too_large": "a sample of the trajectory, or what is said of the group, does not fit into one record, or its rows of steps "
    "are above 32 MiB",
    "too_many_trajectories": "the group has more than 8192 trajectories: give each sampling round a prompt_uid of its own",
    "too_small": "fewer trajectories can be trained than group.min_size asks for",
    "truncated": "the trajectory ended as truncated, and the recipe discards those",
    "vetoed": "a person's decision takes the trajectory, or the group, out",
}
"""`outcomes.reason`. A deadline adds `_at_idle` or `_at_max_age`: `too_small_at_idle`. A late fact's reason is its type. A
group with a record that cannot be read has the record's reason (below)."""

MASKS: Final = {
    "aborted": "the engine aborted the step",
    "capture_failed": "the step was captured with a fault",
    "frozen_model": "the step is of a model that is not trained",
    "guided": "a grammar may have forced tokens",
    "no_log_probs": "log-probs are missing or not finite",
    "raw_log_probs": "the engine's log-probs are those before temperature, top_p or top_k, and these were in effect",
    "shared": "another sample of the trajectory trains these tokens",
    "superseded_retry": "the call was tried again, and the conversation went on from another try's answer",
    "temperature_zero": "the step was sampled at temperature 0",
    "unknown_version": "nobody said which weights sampled the tokens",
    "unresolved_retry": "the call was tried again, and nothing tells which try's answer the agent got",
    "vetoed": "a person's decision takes the step out",
}
"""`samples.mask_reasons`: response tokens that are in a sample and not trained."""

ANNOTATIONS: Final = {
    "annotation_length": "the array has more or fewer values than the step's response has tokens",
    "annotation_not_finite": "a value of the array is infinite or no number",
    "annotation_without_step": "the trajectory has no such step, or the step failed or broke off",
}
"""`GroupReady.members.unused`: arrays that are not in any sample."""

LEFT_OUT: Final = {
    "decided": "the recipe, in this version or an earlier one, has said its word on the group before",
    "held": "the group is held for review, and no decision on it has come",
    "not_in_pool": "the pool lacks facts of the group (they could not be stored, or only in part), or their order (some came "
    "before the events grew, some after)",
    "open": "the group is still open on the log; another backfill takes it when it has closed",
    "other_channel": "no trajectory of the group has the recipe's channel",
    "run_purged": "the group began before its run was to be forgotten",
    "waiting": "with the recipe in force the group would still wait for a deadline; another backfill takes it after that",
}
"""`left_out` of `claw recipes backfill`: groups that began before the recipe and of which nothing is said."""

BATCH_EXCLUSIONS: Final = {
    **{field.reason: f"since a later decision the recipe's filter on {field.name} does not hold" for field in FIELDS},
    "above_batch_tokens": "the group alone has more tokens than `batch.tokens`, or than its share of a mix",
    "above_cut": "the group alone has more samples than one cut, or its share of a mix, can name",
    "annotation_missing": "a sample lacks an array that the recipe requires now",
    "beyond_mix": "another share of `batch.mix` is short, and 8 batches' groups of this one's share wait already",
    "no_label": "a sample is neither desirable nor undesirable, and the algorithm is kto",
    "no_pair": "the group has no chosen and rejected trajectory, by later decisions or since another version emitted it",
    "no_reward": "a sample's trajectory has no reward",
    "no_trained_tokens": "every token of the group is masked",
    "nothing_picked": "by later decisions no trajectory has a reward of pick.min_reward",
    "outside_mix": "the group's value of the field that `batch.mix` names has no share",
    "run_purged": "the run is to be forgotten",
    "samples_missing": "the marker names samples that the topic does not hold",
    "stale": "a trained token is older than staleness.max_versions allows; with mask_tokens all are",
    "token_id_too_large": "a token id does not fit into a signed 32-bit integer",
    "too_small": "later decisions leave fewer trajectories than group.min_size",
    "unknown_version": "a trained token's policy version is not known, and the recipe drops such groups",
    "vetoed": "a person's decision takes the group out",
}
"""`cut_members.reason`: a ready group that a batch does not get."""

NOT_CARRIED: Final = {
    "broker_away": "the broker did not answer in time: the groups are carried later",
    "facts_missing": "the log does not hold a fact of the group any more: it is not carried",
}
"""`claw_streams_not_carried_total`: an attempt to write a group that is open for long to the log again was given up."""

RECORDS: Final = {
    "blob_damaged": "a blob does not hold the bytes of its name",
    "blob_missing": "the blob store has no blob of that name",
    "blob_too_large": "a blob is above the store's bound",
    "cycle": "steps name each other as parents",
    "moved": "an outcome is on the ledger again, for the worker of another partition: the pool has it",
    "no_parent": "a step continues a step that is not here",
    "no_type": "the record has no ce_type header",
    "not_acknowledged": "the broker did not acknowledge a fact for which nobody waited any more",
    "not_wanted": "the trajectory's run or channel is none of those that the worker was given",
    "not_stored": "the record is of a kind that the pool has no table for, or repeats a fact on a recipe's topic",
    "prefix_differs": "a step was made against another prefix of its parent",
    "run_purged": "the row, or the trajectory to be scored, is of a run that is to be forgotten",
    "tombstone": "the record deletes a key of a compacted topic",
    "too_large": "the record is above 8 MiB",
    "unavailable": "ClickHouse or the broker was away, and the work was done again",
    "undecodable": "the record's body does not decode as its type",
    "unencodable": "a value has no form in a record",
    "unknown_type": "the record's type is not known to this version",
    "unstorable": "a value has no form in its column",
}
"""Reasons of dead letters and of the metrics `claw_*_dropped_total` and `claw_sinks_retries_total`."""

MISSING: Final = {
    "bad_reply": "the engine's answer lacks what was asked",
    "bad_value": "the function gave something else than numbers",
    "context_lost": "the conversation or the tokens cannot be restored, or are not known",
    "engine_refused": "the engine answered that it will not do this: a wrong model, too many tokens",
    "engine_unavailable": "the engine was away or overloaded in every attempt",
    "failed": "the function raised, or its process ended, in every attempt",
    "late": "the function or the engine took longer than CLAW_WORKERS_TIMEOUT",
    "media": "the step holds pictures or sound, which token ids alone do not say",
    "none_given": "the function gave no reward",
    "not_finite": "a number is infinite, none, or as a reward above 1e38",
    "other": "in metrics: a function's own reason beyond the 64 that they tell apart; the log says which",
    "steps_not_stored": "the pool did not have the trajectory's steps within CLAW_WORKERS_STEPS_TIMEOUT",
    "too_large": "the fact does not fit into one record",
    "unencodable": "a value has no form in a record",
    "unparsed": "the judge's words hold no score, in every attempt",
}
"""`claw_workers_missing_total` and `claw_workers_retries_total`: a reward or an annotation that could not be made. Never 0."""

IMPORTS: Final = {
    "bad_messages": "`messages` is no list of messages, or one of them has no role",
    "bad_reward": "the reward is not a number",
    "bad_span": "a span has no traceId or spanId, or is not an object",
    "line_too_long": "the line is above 64 MiB",
    "no_messages": "a span says no messages: the program did not record content",
    "no_reply": "the line, or the span, says no reply of the assistant",
    "not_json": "the line is not a JSON object",
    "run_purged": "the fact is of a run that was purged, of which the pool takes nothing any more",
    "too_large": "a fact does not fit into one record",
    "undecodable": "the line is an exported fact that does not decode",
    "unencodable": "a value has no form in a record",
    "unknown_form": "the line is of none of the forms that its kind has",
    "unknown_type": "the line is an exported fact of a type that this version does not know",
    "unreadable": "the line has a form that no reader thought of; the error says where it stuck",
}
"""`rejected` of `claw import`, and `reason` in its rejects file: lines, or spans of lines, that gave no facts."""

EXPORTS: Final = {
    "context_lost": "a step's prompt cannot be restored from its parents",
    "frozen_model": "the conversation is of a model that is not trained",
    "no_messages": "no conversation of the trajectory is known as messages with a reply",
    "no_pair": "the group has no two conversations with different rewards",
    "no_reward": "the trajectory has no reward, so that it cannot be preferred or rejected",
    "not_text": "a message holds more than text, such as a picture",
    "nothing_to_train": "every response token of the trajectory is masked, or it has no token ids",
    "prompts_differ": "the two conversations of the pair begin with different messages",
    "vetoed": "a person's decision takes the trajectory, or the step, out",
}
"""`left_out` of `claw export`: what a form has no row for."""

SECTIONS: Final = {
    "Errors of the gateway": (GATEWAY_ERRORS, "`error.code` of a refusal."),
    "Faults of a captured step": (
        CAPTURE_FAULTS,
        "`steps.capture_reasons`. A step with one of these is stored and never trained. `status_NNN` is an error of the "
        "engine; the code of a gateway error stands for a call that ended with it.",
    ),
    "Fates of groups, trajectories and facts": (
        OUTCOMES,
        "`outcomes.reason`. A deadline adds `_at_idle` or `_at_max_age`, as in `too_small_at_idle`. The reason of a late "
        "fact is the fact's type. A group with a record that cannot be read has that record's reason.",
    ),
    "Masked tokens": (MASKS, "`samples.mask_reasons`. Response tokens that are in a sample and not trained."),
    "Annotations that are not used": (
        ANNOTATIONS,
        "`claw_streams_annotations_unused_total`, and `unused` of a ready group's members.",
    ),
    "Groups that a backfill leaves out": (
        LEFT_OUT,
        "`left_out` of `claw recipes backfill`: groups that began before the recipe and of which nothing is said.",
    ),
    "Lines that an import rejects": (IMPORTS, "`rejected` of `claw import`, and `reason` in its rejects file."),
    "What an export leaves out": (EXPORTS, "`left_out` of `claw export`: what a form has no row for."),
    "Groups that a batch does not get": (BATCH_EXCLUSIONS, "`cut_members.reason`."),
    "Missing rewards and annotations": (
        MISSING,
        "`claw_workers_missing_total` and `claw_workers_retries_total`. Nothing is written for them, and nothing counts as "
        "0: the recipe's `rewards.timeout` says how long a trajectory waits.",
    ),
    "Groups that are not carried": (NOT_CARRIED, "`claw_streams_not_carried_total`. See CLAW_STREAMS_CARRY_AFTER."),
    "Records": (
        RECORDS,
        "Dead letters (header `claw-dlq-reason`), `claw_gateway_dropped_total` (also with the spool's codes above), "
        "`claw_streams_dropped_total`, `claw_workers_dropped_total`, `claw_sinks_dropped_total` and "
        "`claw_sinks_retries_total`.",
    ),
}
