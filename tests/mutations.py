"""Small breaks of the code, and for each the test that must fail: `make mutants` tries them.

A test that cannot fail is worth nothing, and only a break can show that it can. Every entry of
`MUTATIONS` replaces a few characters of one file so that one promise no longer holds, and names one
case of the test that makes this promise. Other tests may turn red too.

To add one: write what breaks in one sentence, copy the code to replace (`old` must occur exactly
once in the file), and name the fastest case of the test. Then run

    python tests/mutations.py -k "a word of the sentence"

and read what pytest says: an error in the broken code itself, such as a call with wrong arguments,
shows nothing about the test.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from shutil import copy2
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT = 600  # seconds for one test; a break may make it run forever


class Mutation(NamedTuple):
    """One break: `old`, which occurs once in `file`, becomes `new`, and `test` must fail.

    `what` says in one sentence what is then wrong; `test` is the argument for pytest.
    """

    what: str
    file: str
    old: str
    new: str
    test: str


RUNTIME, MODELS, METHODS = "vtfast/runtime/", "vtfast/models/", "vtfast/methods/"
VISION = "tests/models/test_vision_scores.py::test_"
TOWER = "tests/models/test_watched_tower.py::test_"
OWN, IMPORTED = "tests/methods/test_own_methods.py::test_", "tests/cli/test_import.py::test_"
CHOOSING = "tests/methods/test_choosing_methods.py::test_"
PATCH = "tests/runtime/test_patch_"
SET, MIDWAY = (f"tests/runtime/test_handle_set{part}.py::test_" for part in ("", "_midway"))
TUNING, SEARCHED = "vtfast/tuning/", "tests/tuning/test_search.py::test_"
TUNED = "tests/tuning/test_tune.py::test_"
FILES = "tests/test_plan_files.py::test_"
REFERENCE = "kernels/reference.py"
SELECT_NUMPY = "kernels/_select_numpy.py"
CONTINUED = "tests/information/test_continued_runs.py::test_"
SCORES = (
    "tests/information/test_information_score.py"
    "::test_every_score_is_that_of_a_forward_on_the_shortened_sequence"
)
INPUTS, READ = "vtfast/inputs/", "tests/inputs/test_reading_pictures.py::"
ROUNDS = "kernels/_greedy_rounds.py"
ROUNDS_TEST = "tests/kernels/test_greedy_rounds.py::"
COMPILED = "tests/kernels/test_compiled_"  # run compiled for sm_90 and executed as PTX
DPP, COVERAGE, GAINS = (
    f"tests/kernels/test_{op}_select.py::test_" for op in ("dpp", "coverage", "gain")
)
COMPACT = "tests/kernels/test_compact.py::test_"
HASH = "tests/kernels/test_image_hash.py::"
TILES = "tests/models/test_tiles.py::"
TALK, FOUND = "tests/inputs/test_conversations.py::", "tests/inputs/test_checkpoints.py::"

MUTATIONS = [
    Mutation(
        "Vision scores of Qwen2.5-VL stay in the order of the tower's windows.",
        MODELS + "gridded.py",
        "return merged[to_device(order, merged.device)]",
        "return merged",
        VISION + "they_are_the_attention_of_the_eager_tower[qwen]",
    ),
    Mutation(
        "Patches of a clip get attention from other frames.",
        MODELS + "gridded.py",
        "frames += [rows * columns * side**2] * steps",
        "frames += [rows * columns * side**2 * steps]",
        VISION + "patches_of_a_clip_get_attention_within_their_frame[qwen3]",
    ),
    Mutation(
        "The vision score of a token is that of the head that attends to it most.",
        MODELS + "vision_scores.py",
        "return logits.softmax(-2).mean(-1)",
        "return logits.softmax(-2).amax(-1)",
        VISION + "they_are_the_attention_of_the_eager_tower[llava]",
    ),
    Mutation(
        "The towers of SmolVLM and Idefics3 see the padding of a tile.",
        MODELS + "vision_scores.py",
        "return mask == 0 if mask.is_floating_point() else mask.bool()",
        "return None",
        VISION + "patches_that_pad_a_tile_are_not_seen",
    ),
    Mutation(
        "A later stage sees the vision scores of the first tokens, not of those that are left.",
        RUNTIME + "selection.py",
        "return scores[torch.searchsorted(visual.tokens, first)]",
        "return scores[: len(first)]",
        TOWER + "a_later_stage_sees_the_scores_of_the_tokens_that_are_left[llava-padded]",
    ),
    Mutation(
        "The vision tower of every patched model is watched.",
        RUNTIME + "hooks.py",
        'tower = config.needs & {"vision_scores"}',
        'tower = {"vision_scores"}',
        TOWER + "the_tower_is_watched_only_where_a_plan_needs_it[logits_of]",
    ),
    Mutation(
        "Watching the tower draws random numbers from its dropout.",
        MODELS + "vision_scores.py",
        "torch.random.fork_rng(devices, enabled=module.training)",
        "torch.random.fork_rng(devices, enabled=False)",
        TOWER + "random_numbers_of_the_tower_are_left_alone",
    ),
    Mutation(
        "Pictures that came as features fail in the middle of a forward.",
        RUNTIME + "validation.py",
        'if "vision_scores" in config.needs and visual.vision_scores is None:',
        "if False:",
        TOWER + "pictures_that_came_as_features_alone_are_refused[llava-padded]",
    ),
    Mutation(
        "A method that reads words is not told that the end of the prompt is unknown.",
        RUNTIME + "hooks.py",
        'config.needs & {"scores", "text"}',
        'config.needs & {"scores"}',
        PATCH
        + "prompt_end.py::test_labels_before_the_picture_say_nothing_of_the_prompt_and_warn_once"
        "[llava-padded-cdpruner]",
    ),
    Mutation(
        "Relevances are scaled over the batch.",
        METHODS + "_unit_range.py",
        "low = segments.pad(scores.masked_fill(~known, torch.inf), torch.inf).amin(1)",
        "low = scores.masked_fill(~known, torch.inf).amin().expand(len(segments))",
        CHOOSING + "a_picture_keeps_the_same_alone_and_in_a_batch[cdpruner-options0]",
    ),
    Mutation(
        "The least relevant token of a picture has quality 0.",
        METHODS + "cdpruner.py",
        "_LEAST = 1e-6",
        "_LEAST = 0.0",
        CHOOSING + "a_token_of_the_least_relevance_goes_before_one_that_adds_nothing",
    ),
    Mutation(
        "All duplicates are removed by one comparison.",
        METHODS + "vispruner.py",
        "min(_AT_ONCE, more) :",
        "more :",
        CHOOSING + "it_keeps_what_plain_loops_keep[vispruner-0]",
    ),
    Mutation(
        "A token's cosine to itself counts against its distinctness.",
        METHODS + "diversity.py",
        "(x * x.sum(0)).sum(-1) - (x * x).sum(-1)",
        "(x * x.sum(0)).sum(-1)",
        CHOOSING + "diversity_centres_and_weighs_as_plain_loops_do[False-sigmoid]",
    ),
    # -- wrappers, exporting, quantized weights ----------------------------------------------------
    Mutation(
        "A model that a wrapper holds under two names counts as two models.",
        MODELS + "__init__.py",
        "if id(module) in seen:",
        "if False:",
        PATCH + "wrappers.py::test_the_model_inside_is_patched_once_and_undone_through_its_wrapper"
        "[llava-own]",
    ),
    Mutation(
        "Of a wrapper of two models the first is patched.",
        MODELS + "__init__.py",
        "if len(found) == 1:",
        "if found:",
        PATCH + "errors.py::test_a_wrapper_of_two_models_is_told_how_to_pass_each",
    ),
    Mutation(
        "Where FSDP leaves no parameters inside, a patch looks for one.",
        RUNTIME + "hooks.py",
        "self._decide(config, parts.text.get_input_embeddings().weight)",
        "self._decide(config, next(parts.text.parameters()))",
        PATCH + "wrappers.py::test_fsdp_that_leaves_no_parameters_inside_is_patched[padded]",
    ),
    Mutation(
        "A traced forward goes on with what one call has read.",
        RUNTIME + "validation.py",
        "if torch.compiler.is_exporting() or torch.jit.is_tracing():",
        "if torch.compiler.is_exporting():",
        PATCH + "export.py::test_a_forward_with_pictures_is_not_recorded[llava-padded-trace]",
    ),
    Mutation(
        "Scores of a model with learned prompts are computed without them.",
        "vtfast/information/checks.py",
        '"is_prompt_learning", False)',
        '"no_such_name", False)',
        PATCH + "peft.py::test_scores_of_a_model_with_learned_prompts_are_refused",
    ),
    Mutation(
        "A log takes a quantized weight for a plain tensor.",
        "vtfast/information/records.py",
        'if not hasattr(weight, "__tensor_flatten__"):',
        "if True:",
        PATCH + "quantized.py::test_a_log_tells_a_quantized_model_from_its_original[llava]",
    ),
    # -- the padded layout ---------------------------------------------------------------------
    Mutation(
        "Padded: the column of a new token is hidden while decoding.",
        RUNTIME + "kv_cache.py",
        "last = torch.ones_like(self.mask[:, :1]) if given is None",
        "last = torch.zeros_like(self.mask[:, :1]) if True",
        PATCH + "parity.py::test_twenty_greedy_tokens_are_the_oracles[llava-padded-four-stages]",
    ),
    Mutation(
        "Padded: samples of different lengths get no mask.",
        RUNTIME + "padded.py",
        "attention_mask=mask,",
        "attention_mask=None,",
        PATCH + "parity.py::test_logits_of_surviving_tokens_are_the_oracles"
        "[llava-padded-before-the-llm]",
    ),
    Mutation(
        "Padded: a layer after the first stage keeps transformers' own mask.",
        RUNTIME + "state.py",
        'self.given = {"attention_mask": entry.mask, "position_ids": None}',
        'self.given = {"position_ids": None}',
        PATCH + "parity.py::test_the_padded_layout_works_with_another_attention[llava]",
    ),
    Mutation(
        "Padded: padding cached before the first picture is taken for tokens.",
        RUNTIME + "padded.py",
        "known, mask = chunk.mask if past else None, None",
        "known, mask = None, None",
        PATCH + "turns.py::test_pictures_after_a_padded_turn_of_text[llava-padded]",
    ),
    Mutation(
        "Padded: the sines of rotary positions stay where they were when tokens go.",
        RUNTIME + "state.py",
        "hidden, *rotary = self._take(index, hidden, *rotary)",
        "hidden, cos = self._take(index, hidden, rotary[0])\n"
        "            rotary = [cos, self._take(None, rotary[1])[0][:, : cos.shape[1]]]",
        PATCH + "parity.py::test_logits_of_surviving_tokens_are_the_oracles"
        "[llava-padded-random-mid-depth]",
    ),
    Mutation(
        "Padded: a cache counts the tokens it holds, not those it has seen.",
        RUNTIME + "kv_cache.py",
        "return super().get_seq_length(0) + self.vtfast.gap",
        "return super().get_seq_length(0)",
        PATCH + "cache.py::test_decoding_without_positions_goes_on_from_the_original_length"
        "[llava-padded]",
    ),
    Mutation(
        "Padded: a crop leaves the mask as it was.",
        RUNTIME + "kv_cache.py",
        "self.mask = self.mask[:, :-remove]",
        "self.mask = self.mask.clone()",
        PATCH + "attention.py::test_turns_on_one_cache_are_the_oracles[llava-test-2d-masks]",
    ),
    Mutation(
        "Padded: reordering the samples does not reorder their masks.",
        RUNTIME + "kv_cache.py",
        "self.mask = self.mask[index.to(self.mask.device)]",
        "self.mask = self.mask[: len(index)]",
        PATCH
        + "turns.py::test_rearranged_samples_go_on_with_their_own_tokens[llava-padded-reordered]",
    ),
    Mutation(
        "Padded: samples a, b repeat as a, b, a, b, where the cache has a, a, b, b.",
        RUNTIME + "kv_cache.py",
        "samples.repeat_interleave(repeats)",
        "samples.repeat(repeats)",
        PATCH
        + "turns.py::test_rearranged_samples_go_on_with_their_own_tokens[llava-padded-repeated]",
    ),
    Mutation(
        "Padded: a third-party attention function is handed positions with gaps.",
        RUNTIME + "state.py",
        '{"attention_mask": entry.mask, "position_ids": None}',
        '{"attention_mask": entry.mask}',
        PATCH + "attention.py::test_a_padded_batch_has_the_oracles_logits_and_tokens"
        "[llava-test-2d-masks]",
    ),
    Mutation(
        "Padded: a third-party attention function is handed vtfast's own keyword argument.",
        RUNTIME + "hooks.py",
        "kwargs = {k: v for k, v in kwargs.items() if k != STATE}",
        "kwargs = dict(kwargs)",
        PATCH + "attention.py::test_a_single_sample_has_the_oracles_logits_and_tokens"
        "[llava-test-4d-masks]",
    ),
    Mutation(
        "A static cache hides the columns of future tokens permanently.",
        RUNTIME + "padded.py",
        "real.expand(-1, room)], 1)",
        "~real.expand(-1, room)], 1)",
        PATCH + "static.py::test_tokens_are_the_oracles[llava-batch-sdpa]",
    ),
    Mutation(
        "A static cache's length, made in inference mode, is added to in place outside of it.",
        RUNTIME + "kv_cache.py",
        "if state.packed:  # the longest sample may be gone",
        "if True:",
        PATCH + "static.py::test_one_filled_in_inference_mode_is_reordered_outside[llava]",
    ),
    # -- the packed layout ---------------------------------------------------------------------
    Mutation(
        "Packed: a turn of text is taken over from the cache with its padding.",
        RUNTIME + "packed.py",
        "if past and chunk.cached is None and chunk.mask is not None and chunk.past:",
        "if False:",
        PATCH + "turns.py::test_pictures_after_a_padded_turn_of_text[llava-packed]",
    ),
    Mutation(
        "Packed: the tokens of a later chunk see that chunk only.",
        RUNTIME + "packed.py",
        "keys = Ragged.from_lengths(cached.lengths, hidden.device)\n"
        "            index = row_numbers(cached.starts, cached.lengths, hidden.device)",
        "keys, index = queries, cached.where",
        PATCH + "turns.py::test_pictures_after_a_padded_turn_of_text[llava-packed]",
    ),
    Mutation(
        "DeepStack: features are added in the order of the tokens that are left.",
        RUNTIME + "state.py",
        "self._added[layer] = place, self._row[first]",
        "self._added[layer] = place, torch.arange(len(place))",
        PATCH + "parity.py::test_logits_of_surviving_tokens_are_the_oracles"
        "[qwen3-padded-before-the-llm]",
    ),
    Mutation(
        "DeepStack: features are added behind a layer later.",
        RUNTIME + "state.py",
        "if 0 < number <= len(self._between):",
        "if 1 < number <= len(self._between):",
        PATCH + "parity.py::test_logits_of_surviving_tokens_are_the_oracles"
        "[qwen3-packed-before-the-llm]",
    ),
    Mutation(
        "Recurrent layers get the mask of attention.",
        RUNTIME + "state.py",
        "if given and self.parts.attends[number] != number:",
        "if given and self.parts.attends[number] < 0:",
        PATCH + "parity.py::test_logits_of_surviving_tokens_are_the_oracles"
        "[qwen3.5-padded-before-the-llm]",
    ),
    Mutation(
        "The gap of a cache whose first layer is recurrent is that of layer 0.",
        RUNTIME + "padded.py",
        "if stage.layer <= self._attends[0] < stage.until:",
        "if stage.layer == 0:",
        PATCH + "recurrent.py::"
        "test_a_stage_before_the_first_layer_that_attends_has_the_oracles_tokens",
    ),
    Mutation(
        "A reset cache has layers of attention in place of recurrent ones.",
        RUNTIME + "kv_cache.py",
        '(DynamicLayer if hasattr(x, "keys") else type(x))()',
        "DynamicLayer()",
        PATCH + "decoding.py::test_a_reset_cache_is_a_fresh_one[qwen3.5-padded]",
    ),
    Mutation(
        "Packed: the sines of rotary positions stay where they were when tokens go.",
        RUNTIME + "state.py",
        "hidden, *rotary = self._take(index, hidden, *rotary)",
        "hidden, cos = self._take(index, hidden, rotary[0])\n"
        "            rotary = [cos, self._take(None, rotary[1])[0][:, : cos.shape[1]]]",
        PATCH + "parity.py::test_logits_of_surviving_tokens_are_the_oracles"
        "[llava-packed-random-mid-depth]",
    ),
    Mutation(
        "Packed: a cache counts the tokens it holds, not those it has seen.",
        RUNTIME + "kv_cache.py",
        "return super().get_seq_length(0) + self.vtfast.gap",
        "return super().get_seq_length(0)",
        PATCH + "cache.py::test_decoding_without_positions_goes_on_from_the_original_length"
        "[llava-packed]",
    ),
    Mutation(
        "Packed: a crop leaves the lengths as they were.",
        RUNTIME + "packed_kv_cache.py",
        "self.lengths = [max(0, n - remove) for n in self.lengths]",
        "self.lengths = list(self.lengths)",
        PATCH + "turns.py::test_what_is_cropped_may_be_said_differently[llava-packed]",
    ),
    Mutation(
        "Packed: reordering the samples does not reorder their keys and values.",
        RUNTIME + "packed_kv_cache.py",
        "starts, lengths = [self.starts[b] for b in order], [self.lengths[b] for b in order]",
        "starts, lengths = self.starts[: len(order)], self.lengths[: len(order)]",
        PATCH
        + "turns.py::test_rearranged_samples_go_on_with_their_own_tokens[llava-packed-reordered]",
    ),
    Mutation(
        "Packed: samples a, b repeat as a, b, a, b, where a, a, b, b is meant.",
        RUNTIME + "kv_cache.py",
        "samples.repeat_interleave(repeats)",
        "samples.repeat(repeats)",
        PATCH
        + "turns.py::test_rearranged_samples_go_on_with_their_own_tokens[llava-packed-repeated]",
    ),
    Mutation(
        "Packed: padding stays until the first stage that drops tokens.",
        RUNTIME + "state.py",
        "arranged = layout.is_packed",
        "arranged = False",
        PATCH + "memory.py::test_a_cache_holds_the_plans_tokens_and_text_and_new_tokens"
        "[llava-batch-late]",
    ),
    Mutation(
        "Packed: only the first stage is asked whether tokens will be dropped.",
        RUNTIME + "state.py",
        "self.rearranges = arranged and any(drops)",
        "self.rearranges = arranged and list(drops)[1]",  # [0] was put before the plan's
        PATCH + "memory.py::test_a_cache_holds_the_plans_tokens_and_text_and_new_tokens"
        "[llava-batch-all-first]",
    ),
    Mutation(
        "Packed: transformers builds a mask that no layer needs.",
        RUNTIME + "hooks.py",
        'kwargs["attention_mask"] = embeds.new_zeros(1, 1, 1, 1)',
        "pass",
        PATCH + "memory.py::test_no_mask_is_built_for_samples_without_padding[llava-batch-plan1]",
    ),
    Mutation(
        "Packed: a cache has seen fewer tokens once its longest sample leaves it.",
        RUNTIME + "kv_cache.py",
        "if state.packed:  # the longest sample may be gone",
        "if False:",
        PATCH + "cache.py::test_a_cache_counts_as_before_when_samples_leave_it[llava-packed]",
    ),
    Mutation(
        "Packed: beams of one prompt are not reordered.",
        RUNTIME + "packed_kv_cache.py",
        "self._copy(layers, source.clamp(max=last), rows)",
        "self._copy(layers, rows.clamp(max=last), rows)",
        PATCH + "generate.py::test_beam_search_with_a_cache_finds_what_it_finds_without"
        "[llava-packed-batch]",
    ),
    Mutation(
        "Packed: beams of unequal prompts are reordered by reading their order from the device.",
        RUNTIME + "packed_kv_cache.py",
        "if not even and not alike:",
        "if not even:",
        "tests/runtime/test_host_reads.py::"
        "test_beams_of_unequal_prompts_are_reordered_without_a_read[llava-packed]",
    ),
    Mutation(
        "Packed: a buffer that grows forgets what it held.",
        RUNTIME + "packed_kv_cache.py",
        "self._room(t).index_copy_(0, target, t[source]) for t",
        "self._room(t).zero_() for t",
        PATCH
        + "turns.py::test_rearranged_samples_go_on_with_their_own_tokens[llava-packed-repeated]",
    ),
    Mutation(
        "Packed: a buffer that grows gets no room for the new tokens.",
        RUNTIME + "packed_kv_cache.py",
        "self._move(list(range(len(new))), layers, extra=new)",
        "self._move(list(range(len(new))), layers)",
        PATCH + "turns.py::test_buffers_grow_between_turns_and_rearranged_samples[llava-packed]",
    ),
    # -- what a call of the model gives back ---------------------------------------------------
    Mutation(
        "Tokens are put back to their places in reverse.",
        RUNTIME + "state.py",
        "out.index_copy_(0, self.origin, tokens)",
        "out.index_copy_(0, self.origin.flip(0), tokens)",
        PATCH + "parity.py::test_logits_of_surviving_tokens_are_the_oracles"
        "[llava-padded-before-the-llm]",
    ),
    Mutation(
        "The last entry of `hidden_states` is not put back to full length.",
        RUNTIME + "hooks.py",
        'out["hidden_states"] = (*out["hidden_states"][:-1], hidden)',
        "pass",
        PATCH + "outputs.py::test_hidden_states_are_the_oracles[llava-packed]",
    ),
    Mutation(
        "Labels that nothing can predict are ignored in the first sample only.",
        RUNTIME + "labels.py",
        "mute = read.visual | ~read.valid",
        "mute = (read.visual | ~read.valid) & (np.arange(len(read.visual)) == 0)[:, None]",
        PATCH + "outputs.py::test_a_label_inside_a_picture_is_ignored_in_any_sample[llava-padded]",
    ),
    Mutation(
        "A trainer's count of labels keeps those that are ignored.",
        RUNTIME + "labels.py",
        'call["num_items_in_batch"] = call["num_items_in_batch"] * share',
        "pass",
        PATCH + "labels.py::test_a_trainers_count_of_labels_leaves_out_those_that_are_ignored",
    ),
    # -- samples packed into a row, and where prompts end ------------------------------------------
    Mutation(
        "Samples packed into a row are one sample.",
        RUNTIME + "call.py",
        'starts = np.flatnonzero(found["starts"])',
        "pass",
        PATCH + "packed_samples.py::test_a_packed_sample_has_the_logits_it_has_alone"
        "[llava-packed-late-scores]",
    ),
    Mutation(
        "Packed samples see one another in the layers before the first stage.",
        RUNTIME + "state.py",
        "arranged = self.batch > self.rows",
        "arranged = False",
        PATCH + "packed_samples.py::test_a_packed_sample_has_the_logits_it_has_alone"
        "[qwen-padded-late-scores]",
    ),
    Mutation(
        "FlashAttention is told where samples were before tokens were dropped.",
        RUNTIME + "state.py",
        "self.given |= {name: None for name in FLASH_ARGUMENTS if name in kwargs}",
        "pass",
        PATCH + "packed_samples.py::test_flash_attention_is_told_nothing_of_tokens_that_are_gone",
    ),
    Mutation(
        "Methods see the answer too.",
        RUNTIME + "selection.py",
        "after = self._visual.after_prompt if self._visual else []",
        "after = []",
        PATCH + "prompt_end.py"
        "::test_an_answer_scored_again_has_the_probabilities_it_was_generated_with"
        "[llava-padded-fastv-labels]",
    ),
    Mutation(
        "Drafts are part of the prompt.",
        RUNTIME + "prompt.py",
        "end = columns - asked + 1",
        "pass",
        PATCH + "prompt_end.py::test_prompt_lookup_says_what_greedy_decoding_says"
        "[llava-padded-fastv-keep-a-draft]",
    ),
    Mutation(
        "Only ones in a mask mark tokens.",
        RUNTIME + "hooks.py",
        "mask, axes = None if mask is None else mask != 0,",
        "mask, axes = None if mask is None else mask == 1,",
        PATCH + "masks.py::test_every_number_but_0_marks_a_token[llava-padded-twos]",
    ),
    Mutation(
        "A picture that is masked out is pruned like any other.",
        RUNTIME + "visual_tokens.py",
        "return bool(tokens.any())",
        "return True",
        PATCH + "masks.py::test_a_picture_that_is_hidden_as_a_whole_is_padding[llava-padded-right]",
    ),
    Mutation(
        "The ids beside embeddings stay with generate.",
        RUNTIME + "stand_in.py",
        "if embeds is not None and 0 < embeds.shape[1] <= input_ids.shape[1]:",
        "if False:",
        PATCH + "merged_features.py"
        "::test_prompts_with_ids_beside_embeddings_are_pruned_as_ever[llava-single-padded]",
    ),
    Mutation(
        "Of several rows for one sample the pictures are taken as if each row had its own.",
        RUNTIME + "call.py",
        "order.append(_order(placed, pictures[-1].sizes, source.copies))",
        "order.append(np.tile(np.arange(len(pictures[-1].sizes)), source.copies))",
        TILES + "test_a_picture_has_its_hash_in_any_company[internvl-beams]",
    ),
    Mutation(
        "A tile's place in its picture is not part of the hash.",
        MODELS + "generic.py",
        "return of_images.index_add_(0, image, mix64(made, number))",
        "return of_images.index_add_(0, image, mix64(made, number * 0))",
        TILES + "test_a_picture_has_its_hash_in_any_company[internvl-forward]",
    ),
    Mutation(
        "Tiles that fill a batch up count as a picture's.",
        MODELS + "generic.py",
        "made = made[there[: len(numbers)]]",
        "made = made[: len(numbers)]",
        TILES + "test_a_picture_has_its_hash_in_any_company[smolvlm-forward]",
    ),
    Mutation(
        "Every tile of Idefics3 is a picture.",
        MODELS + "tiles.py",
        "ends = (before == of_last).all(1)",
        "pass",
        TILES + "test_budgets_are_for_pictures_not_for_tiles_or_rows[smolvlm]",
    ),
    Mutation(
        "All pictures of LLaVA-OneVision are cut into tiles.",
        MODELS + "llava_next.py",
        "cut = [n == 1 for n in numbers[0] for _ in range(n)]",
        "cut = [True for n in numbers[0] for _ in range(n)]",
        TILES + "test_of_several_pictures_in_a_sample_onevision_may_see_overviews_alone",
    ),
    Mutation(
        "The ends of lines count as patches.",
        INPUTS + "grids.py",
        "found.append(raster[..., :-1] if line_ends and found else raster)",
        "found.append(raster)",
        "tests/inputs/test_grids.py"
        "::test_tokens_have_a_place_in_the_picture_or_its_tiles[llava-next-grids7]",
    ),
    Mutation(
        "A token that ends a clip is a frame of its own.",
        "vtfast/methods/segments.py",
        "if (grid == _SINGLE and pieces) or (pieces and pieces[-1] == (_SINGLE,)):",
        "if False:",
        TILES
        + "test_a_clip_of_onevision_is_cut_by_frame_and_its_last_token_goes_with_the_last_frame",
    ),
    Mutation(
        "Uniform takes the tokens of all tiles as one row.",
        "vtfast/methods/uniform.py",
        "for grid in parts if sum(map(prod, parts)) == length else [(1, 1, length)]:",
        "for grid in [(1, 1, length)]:",
        TILES + "test_uniform_spaces_tokens_in_every_grid_of_a_picture[internvl]",
    ),
    Mutation(
        "The pixels that fill a picture of Mistral3 up are hashed with it.",
        MODELS + "mistral3.py",
        "picture[None, :, : rows * side, : columns * side].contiguous()",
        "picture[None]",
        TILES + "test_a_picture_has_its_hash_in_any_company[mistral3-forward]",
    ),
    # -- which tokens stay ---------------------------------------------------------------------
    Mutation(
        "A fraction is taken of the tokens left, not of the picture's original ones.",
        RUNTIME + "selection.py",
        "keep = tuple(stage.prune.count(s.original, s.left) for s in segments)",
        "keep = tuple(stage.prune.count(s.left, s.left) for s in segments)",
        PATCH + "selection.py::test_every_stage_keeps_what_its_method_means"
        "[llava-padded-four-stages]",
    ),
    Mutation(
        "Attention scores are read one layer late.",
        "vtfast/methods/stage.py",
        "return self.layer if this else self.layer - 1",
        "return self.layer",
        PATCH + "selection.py::test_every_stage_keeps_what_its_method_means"
        "[llava-padded-topk-at-2]",
    ),
    Mutation(
        "All frames of a clip draw the same random picks.",
        RUNTIME + "selection.py",
        "return mix64(hashes, to_device([s.number for s in segments], device))",
        "return hashes",
        PATCH + "pictures.py::test_frames_of_one_clip_draw_picks_of_their_own[padded]",
    ),
    Mutation(
        "A vision tower's output that `generate` made before the forward carries no image hash.",
        MODELS + "generic.py",
        'self.hashes(multimodal, kind, call) if "image_hash" in needs else None',
        "None",
        "tests/runtime/test_image_hash.py::test_generate_draws_the_picks_of_a_plain_forward"
        "[llava-padded]",
    ),
    Mutation(
        "Pictures of earlier turns are not counted.",
        RUNTIME + "state.py",
        "state.images = images if state.images is None else state.images + images",
        "state.images = images",
        PATCH
        + "edges.py::test_pictures_are_counted_on_after_samples_of_a_cache_moved[mask-padded]",
    ),
    Mutation(
        "Pictures without pixels get the numbers of those of earlier turns.",
        RUNTIME + "selection.py",
        "hashes = hashes + seen[to_device(samples, device)]",
        "pass",
        PATCH + "edges.py::test_pictures_that_lose_nothing_are_counted_too",
    ),
    # -- positions -----------------------------------------------------------------------------
    Mutation(
        "Renumbered and padded: the position of a new token counts dropped and padded ones.",
        RUNTIME + "padded.py",
        "held = held - (~mask).sum(1, keepdim=True) + (real == 0).sum(1, keepdim=True)",
        "pass",
        PATCH + "renumber.py::test_tokens_are_the_oracles[llava-padded-in-the-middle]",
    ),
    Mutation(
        "Renumbered and packed: a new token gets the position after its own.",
        RUNTIME + "packed.py",
        "held = [n - m for n, m in zip(chunk.cached.lengths, chunk.lengths, strict=True)]",
        "held = list(chunk.cached.lengths)",
        PATCH + "renumber.py::test_tokens_are_the_oracles[llava-packed-in-the-middle]",
    ),
    Mutation(
        "Renumbered: a sample that lost nothing counts its positions anew as well.",
        RUNTIME + "state.py",
        "moved = to_device([b in losers for b in range(self.batch)]",
        "moved = to_device([True for _ in range(self.batch)]",
        PATCH + "renumber.py::test_a_sample_that_loses_nothing_keeps_its_positions[qwen-padded]",
    ),
    # -- patch, unpatch, and caches that meet another patch --------------------------------------
    Mutation(
        "The attention implementation is not restored.",
        RUNTIME + "hooks.py",
        "text.set_attn_implementation(self._original)",
        "pass",
        PATCH + "undo.py::test_undo_restores_every_attribute_of_every_module[llava-packed-remove]",
    ),
    Mutation(
        "One hook stays behind.",
        RUNTIME + "hooks.py",
        "for handle in self._handles:",
        "for handle in self._handles[1:]:",
        PATCH + "undo.py::test_undo_restores_every_attribute_of_every_module[llava-padded-remove]",
    ),
    Mutation(
        "A second patch replaces the first.",
        "vtfast/patching.py",
        "if active is not None:\n        raise",
        "if active is not None:\n        active.remove()\n    if False:\n        raise",
        PATCH + "errors.py::test_patching_twice_names_the_active_plan[llava]",
    ),
    Mutation(
        "An unpatched model goes on with a packed cache.",
        RUNTIME + "packed_kv_cache.py",
        "if self._turn == self.layout.turn:",
        "if False:",
        PATCH + "edges.py::test_a_packed_cache_goes_on_only_under_its_patch[llava-packed]",
    ),
    Mutation(
        "Another plan goes on with a pruned cache.",
        RUNTIME + "validation.py",
        "same = made.plan == now.plan and made.positions == now.positions",
        "same = made.positions == now.positions",
        PATCH + "saving.py::test_a_written_cache_remembers_the_plan_that_pruned_it[llava-padded]",
    ),
    Mutation(
        "A cache of another patch goes on by its plan, which this model was never set to.",
        RUNTIME + "hooks.py",
        "if config is not None and config.patch == now.patch:",
        "if config is not None:",
        SET + "a_cache_of_another_patch_goes_on_by_an_equal_plan_alone[llava-padded]",
    ),
    Mutation(
        "A cache that an equal plan has pruned is not this patch's when another plan is set.",
        RUNTIME + "validation.py",
        "    state.config = now\n",
        "",
        SET + "a_cache_of_another_patch_goes_on_by_an_equal_plan_alone[llava-padded]",
    ),
    Mutation(
        "A cache whose pictures lost nothing takes the plan that is set later.",
        RUNTIME + "state.py",
        "if visual.tokens is not None and self.cache is not None:",
        "if visual.tokens is not None and self.cache is not None and self.changed:",
        SET + "later_pictures_of_a_cache_are_pruned_by_its_plan[llava-padded-all]",
    ),
    Mutation(
        "What `generate` encodes for a cache is what the plan set last needs.",
        RUNTIME + "hooks.py",
        "_GENERATING.set(self._config_for(state_of(names.given_cache(kwargs))))",
        "_GENERATING.set(self.config)",
        SET + "later_pictures_of_a_cache_are_pruned_by_its_plan[llava-padded-tower]",
    ),
    Mutation(
        "The layers of a plan that is set get no hooks.",
        RUNTIME + "hooks.py",
        "        self._hook(config)\n        self.config = config",
        "        self.config = config",
        SET + "the_next_prefill_is_that_of_a_fresh_patch[llava-padded]",
    ),
    Mutation(
        "A plan is set before it is refused.",
        RUNTIME + "hooks.py",
        "        where = self.parts.text.get_input_embeddings().weight, self.parts.head_size\n",
        "        self.config = config\n"
        "        where = self.parts.text.get_input_embeddings().weight, self.parts.head_size\n",
        SET + "what_a_patch_refuses_is_refused_alike_and_nothing_has_changed[kernels]",
    ),
    Mutation(
        "A plan set between encoding and prefill takes pictures that were not made for it.",
        RUNTIME + "hooks.py",
        "begun = None if torch.compiler.is_compiling() else _GENERATING.get()",
        "begun = None",
        MIDWAY + "a_call_that_has_begun_goes_on_by_its_plan"
        "[llava-packed-generate-tower-plain-tower]",
    ),
    Mutation(
        "A forward looks up twice which plan is set.",
        RUNTIME + "hooks.py",
        "config = (visual and visual.config) or self._config_for(state)",
        "config = self._config_for(state)",
        MIDWAY + "a_call_that_has_begun_goes_on_by_its_plan"
        "[llava-packed-forward-model-four-scored]",
    ),
    Mutation(
        "A plan that is set has the tower not looked at for a forward that waits for its scores.",
        MODELS + "generic.py",
        "scores = None if is_encoding() else expected(kind)",
        'scores = None if "vision_scores" not in needs else expected(kind)',
        MIDWAY + "a_call_that_has_begun_goes_on_by_its_plan"
        "[llava-packed-forward-model-tower-plain]",
    ),
    Mutation(
        "Features without image hashes are pruned as if they had no pixels, by a plan set later.",
        MODELS + "generic.py",
        'if hashes is None and "image_hash" in needs:',
        "if False:",
        SET
        + "features_follow_the_plan_that_is_set_where_they_were_made_for_its_needs[llava-padded]",
    ),
    Mutation(
        "A reset cache remembers how many tokens it has seen.",
        RUNTIME + "kv_cache.py",
        "del self.vtfast\n        cache.__class__ = plain",
        "pass",
        PATCH + "edges.py::test_a_reset_cache_starts_anew[llava-padded]",
    ),
    Mutation(
        "A layer that gradient checkpointing runs again, hooks and all, does not prune again.",
        RUNTIME + "state.py",
        "return self._take(index, hidden)[0], {**kwargs, **given}",
        "return hidden, {**kwargs, **given}",
        PATCH + "checkpointing.py::test_a_layer_whose_hooks_run_again_prunes_as_before[llava]",
    ),
    # -- what transformers calls things --------------------------------------------------------
    Mutation(
        "A layer's cache is not found under the name it has since transformers 5.24.",
        RUNTIME + "names.py",
        "name = next((name for name in CACHE if name in kwargs), None)",
        "name = next((name for name in CACHE[1:] if name in kwargs), None)",
        "tests/models/test_transformers_names.py::test_a_cache_is_found_under_either_name[cache]",
    ),
    Mutation(
        "A layer that is handed no cache by any known name counts as one without a cache.",
        RUNTIME + "names.py",
        "if name is None:\n        raise",
        "if name is None:\n        return None\n    if False:\n        raise",
        "tests/models/test_transformers_names.py::"
        "test_a_layer_may_be_handed_no_cache_but_by_name[cache]",
    ),
    Mutation(
        "A module that does not take an argument we change is accepted.",
        RUNTIME + "names.py",
        "if not any(n in taken for n in either):",
        "if False:",
        "tests/models/test_transformers_names.py::test_an_argument_a_module_does_not_take_is_named",
    ),
    Mutation(
        "Checkpointing is assumed to take the cache away in generation too.",
        RUNTIME + "names.py",
        'checkpointed and (torch.is_grad_enabled() or name == "past_key_values")',
        "checkpointed",
        "tests/models/test_transformers_names.py::"
        "test_checkpointing_takes_the_cache_away_since_5_24_only_under_gradients",
    ),
    Mutation(
        "Layers may hold rotary rows of their own, which no stage rewrites.",
        RUNTIME + "handed.py",
        "if self.shares and not isinstance(rotary, RotaryRows):",
        "if False:",
        "tests/models/test_changed_releases.py::"
        "test_a_hook_raises_where_it_does_not_find_what_it_needs[llava-packed-copies-of-rotary]",
    ),
    Mutation(
        "A forward whose layers never see its state goes on unpruned.",
        RUNTIME + "handed.py",
        "if self.stages != list(stages):",
        "if False:",
        "tests/models/test_changed_releases.py::"
        "test_a_hook_raises_where_it_does_not_find_what_it_needs[llava-padded-to-the-layers]",
    ),
    Mutation(
        "A packed forward whose attention never sees its state goes on.",
        RUNTIME + "handed.py",
        "if self.attended < self._to_attend",
        "if False",
        "tests/models/test_changed_releases.py::"
        "test_a_hook_raises_where_it_does_not_find_what_it_needs[llava-packed-to-attention]",
    ),
    Mutation(
        "A text model that never sees where the visual tokens are runs unpruned.",
        RUNTIME + "hooks.py",
        "if VISUAL in kwargs and not kwargs[VISUAL].arrived:",
        "if False:",
        "tests/models/test_changed_releases.py::"
        "test_a_hook_raises_where_it_does_not_find_what_it_needs[llava-padded-to-the-text-model]",
    ),
    # -- the self-check on a release never tested ------------------------------------------------
    Mutation(
        "A release never tested is trusted.",
        MODELS + "self_check.py",
        "transformers.__version__ in TESTED)",
        "True)",
        "tests/models/test_self_check.py::"
        "test_another_release_is_checked_once_for_a_kind_of_model[llava]",
    ),
    Mutation(
        "One text model's self-check speaks for all text models in the same class.",
        MODELS + "self_check.py",
        "kind = (cls.__name__, text, ",
        "kind = (cls.__name__, ",
        "tests/models/test_self_check.py::"
        "test_another_text_model_in_the_same_class_is_another_kind",
    ),
    Mutation(
        "The self-check passes whatever the logits are.",
        MODELS + "self_check_trial.py",
        "if not wrong <= TOLERANCE:",
        "if False:",
        "tests/models/test_changed_releases.py::"
        "test_a_mask_function_that_ignores_padding_while_decoding[llava]",
    ),
    Mutation(
        "The self-check does not compare which tokens the scores would keep.",
        MODELS + "self_check_trial.py",
        "if scores is not None and scores[stay].min()",
        "if False and scores[stay].min()",
        "tests/models/test_changed_releases.py::test_scores_computed_differently[llava]",
    ),
    Mutation(
        "The self-check does not try the packed layout.",
        MODELS + "self_check.py",
        'for path in ("padded", "packed") if packed and not family.recurrent else ("padded",):',
        'for path in ("padded",) if packed and not family.recurrent else ("padded",):',
        "tests/models/test_self_check.py::test_every_kind_of_run_is_tried_in_both_layouts[llava]",
    ),
    Mutation(
        "The self-check does not try the padded layout.",
        MODELS + "self_check.py",
        'for path in ("padded", "packed") if packed and not family.recurrent else ("padded",):',
        'for path in ("packed",) if packed and not family.recurrent else ("padded",):',
        "tests/models/test_changed_releases.py::"
        "test_a_mask_function_that_ignores_an_argument[llava-layer_idx]",
    ),
    Mutation(
        "The self-check forgets the caller's default dtype.",
        MODELS + "self_check.py",
        "stack.callback(torch.set_default_dtype, dtype)",
        "pass",
        "tests/models/test_self_check.py::"
        "test_it_works_anywhere_and_leaves_no_trace[llava-bfloat16-by-default]",
    ),
    Mutation(
        "The self-check leaves an attention function behind in transformers' registries.",
        MODELS + "self_check.py",
        "stack.callback(attention.unregister)",
        "pass",
        "tests/models/test_self_check.py::"
        "test_it_works_anywhere_and_leaves_no_trace[llava-autocast]",
    ),
    # -- what a user names: pictures, data, checkpoints --------------------------------------------
    Mutation(
        "Transparent pixels show what is stored in them.",
        "vtfast/processors.py",
        "if not picture.has_transparency_data:",
        "if True:",
        READ + "test_what_is_transparent_is_on_white[RGBA]",
    ),
    Mutation(
        "Transparent pixels of a clip's frames show what is stored in them.",
        "vtfast/processors.py",
        "on_white(f) if isinstance(f, Image) else f",
        'f.convert("RGB") if isinstance(f, Image) else f',
        "tests/models/test_processors.py::test_transparent_frames_of_a_clip_are_on_white",
    ),
    Mutation(
        "A transparent grey of 16 bits is opaque.",
        INPUTS + "pictures.py",
        "if clear is not None:",
        "if False:",
        READ + "test_what_is_transparent_is_on_white[a clear grey of 16 bits]",
    ),
    Mutation(
        "An opened picture is not turned by its EXIF data.",
        INPUTS + "pictures.py",
        "return _upright(source)",
        'return source.convert("RGB")',
        READ + "test_an_opened_picture_is_read_like_its_file[turned.jpg]",
    ),
    Mutation(
        "A data set says nothing of frames that are left out.",
        INPUTS + "data.py",
        "if note := first_frames(",
        "if False and first_frames(",
        TALK + "test_a_data_set_warns_in_one_line_of_frames_that_are_left_out[llava-small]",
    ),
    Mutation(
        "A file that is one JSON array is read line by line.",
        INPUTS + "data_files.py",
        "if end == len(body):",
        "if False:",
        TALK + "test_an_array_of_plain_objects_is_read_too",
    ),
    Mutation(
        "Later questions of a conversation are asked without its earlier turns.",
        INPUTS + "data_files.py",
        "context, question = tuple(turns[: i - 1]), texts[i - 1]",
        "context, question = (), texts[i - 1]",
        TALK + "test_every_answer_is_an_example_with_the_turns_before_it[qwen]",
    ),
    Mutation(
        "A picture without a mark comes after the text.",
        INPUTS + "chats.py",
        "first[:0] = images",
        "first += images",
        TALK + "test_llavas_format_reads_as_the_plain_one[llava-small-before]",
    ),
    Mutation(
        "A folder with all weights is an adapter if PEFT's configuration is in it.",
        INPUTS + "checkpoints.py",
        "if ADAPTER in files and not any(file.startswith(_WEIGHTS) for file in files):",
        "if ADAPTER in files:",
        "tests/inputs/test_adapters.py::test_a_checkpoint_with_all_its_weights_is_no_adapter",
    ),
    Mutation(
        "A missing vocabulary is noticed after the picture processor.",
        INPUTS + "checkpoints.py",
        "in _NEEDED.items() if not",
        "in list(_NEEDED.items())[::-1] if not",
        FOUND + "test_of_missing_files_the_vocabulary_is_named_first[and a processor-llava]",
    ),
    Mutation(
        "A tokenizer may write pictures as a token that the model does not know.",
        INPUTS + "checkpoints.py",
        "if found != expected:",
        "if False:",
        FOUND + "test_a_tokenizer_of_another_model_is_refused_before_it_counts_no_pictures",
    ),
    # -- what the ops compute ------------------------------------------------------------------
    Mutation(
        "Gathered rows come in ascending order instead of the order asked for.",
        REFERENCE,
        "x.index_select(0, index) for x in tensors",
        "x.index_select(0, index.sort().values) for x in tensors",
        "tests/kernels/test_gather.py::test_copies_the_chosen_rows_of_every_tensor",
    ),
    Mutation(
        "Compacting finds a visual token before itself.",
        "kernels/compact.py",
        "inside & (number < x)",
        "inside & (number <= x)",
        COMPACT + "drops_the_visual_tokens_that_are_not_picked[triton-one sample-torch.int32]",
    ),
    Mutation(
        "The search among visual tokens ends before the last one.",
        "kernels/compact.py",
        "inside = reach <= n",
        "inside = reach < n",
        COMPACT + "drops_the_visual_tokens_that_are_not_picked[triton-no picks-torch.int32]",
    ),
    Mutation(
        "Cuts between sequences stay where they were.",
        "kernels/compact.py",
        "place.to(tl.int32), mask=is_cut",
        "token.to(tl.int32), mask=is_cut",
        COMPACT + "drops_the_visual_tokens_that_are_not_picked[triton-one sample-torch.int32]",
    ),
    Mutation(
        "A picked token is written once for all of its picks, so something is never written.",
        "kernels/compact.py",
        "    _write(stay_ptr, x_ptrs, out_ptrs, token, place, picked)\n",
        "    last = tl.load(picks_ptr + i - 1, mask=picked & (i > 0), other=-1)\n"
        "    _write(stay_ptr, x_ptrs, out_ptrs, token, place, picked & (last != number))\n",
        COMPACT + "the_kernel_writes_all_of_its_result_even_for_repeated_picks[twice]",
    ),
    Mutation(
        "A seed is written to the device at every call.",
        "kernels/random_select.py",
        "if torch.compiler.is_compiling():",
        "if True:",
        "tests/kernels/test_random_select.py::test_an_int_is_written_to_the_device_once",
    ),
    Mutation(
        "On a CPU no visual token is dropped.",
        "kernels/_staying.py",
        "stays[visual] = False",
        "stays[kept] = False",
        COMPACT + "drops_the_visual_tokens_that_are_not_picked[eager-one sample-torch.int32]",
    ),
    Mutation(
        "A stage mixes up where tokens are and where they came from.",
        RUNTIME + "state.py",
        "places = state.images if state else None, (self.slots, self.origin)",
        "places = state.images if state else None, (self.origin, self.slots)",
        PATCH
        + "parity.py::test_logits_of_surviving_tokens_are_the_oracles[llava-padded-four-stages]",
    ),
    Mutation(
        "Equal scores go to the highest row.",
        REFERENCE,
        "order = ranks.sort(dim=1, descending=True, stable=True).indices",
        "last_first = ranks.flip(1).sort(dim=1, descending=True, stable=True).indices\n"
        "    order = ranks.shape[1] - 1 - last_first",
        "tests/kernels/test_topk_select.py::test_breaks_ties_by_position[PyTorch]",
    ),
    Mutation(
        "A score of NaN ranks above all others.",
        REFERENCE,
        "ranks.masked_fill(scores.isnan(), lowest)",
        "ranks.masked_fill(scores.isnan(), torch.iinfo(integer).max)",
        "tests/kernels/test_topk_select.py::test_ranks_nan_below_minus_infinity",
    ),
    Mutation(
        "A score of -0.0 ranks below one of 0.0.",
        REFERENCE,
        "bits = (scores + 0.0).view(integer)",
        "bits = scores.contiguous().view(integer)",
        "tests/kernels/test_topk_select.py::test_takes_negative_zero_for_zero",
    ),
    Mutation(
        "Each segment keeps one row less than asked for.",
        REFERENCE,
        "kept = Ragged.from_lengths(keep, rows.device)",
        "kept = Ragged.from_lengths([max(0, k - 1) for k in keep], rows.device)",
        "tests/kernels/test_topk_select.py::test_agrees_with_a_plain_sort",
    ),
    Mutation(
        "Equal random words are ordered by position at once, without a second word.",
        REFERENCE,
        "ranks = ((first - 2**31) << 32) + second",
        "ranks = (first - 2**31) << 32",
        "tests/kernels/test_random_select.py::"
        "test_equal_words_are_ordered_by_the_second_word_then_by_position",
    ),
    Mutation(
        "A bench times every call on the same inputs.",
        "bench/harness.py",
        "machine.MAX_SETS if size < 2**17 else 1",
        "1",
        "tests/bench/test_harness.py::test_plain_calls_in_a_row_have_different_inputs",
    ),
    Mutation(
        "By NumPy, equal scores go to the highest row.",
        SELECT_NUMPY,
        "equal.nonzero()[0][: k - np.count_nonzero(taken)]",
        "equal.nonzero()[0][::-1][: k - np.count_nonzero(taken)]",
        "tests/kernels/test_topk_select.py::test_breaks_ties_by_position[NumPy]",
    ),
    Mutation(
        "By NumPy, a score of NaN ranks above all others.",
        SELECT_NUMPY,
        "np.negative(scores.numpy(force=True))",
        "np.negative(np.nan_to_num(scores.numpy(force=True), nan=np.inf))",
        "tests/kernels/test_topk_select.py::test_ranks_nan_below_minus_infinity",
    ),
    Mutation(
        "By NumPy, equal random words are ordered by position at once.",
        SELECT_NUMPY,
        "np.lexsort((*drawn, words))",
        "np.argsort(words, kind='stable')",
        "tests/kernels/test_random_select.py::"
        "test_equal_words_are_ordered_by_the_second_word_then_by_position",
    ),
    Mutation(
        "By NumPy, every group of segments draws with the image hashes of the first.",
        SELECT_NUMPY,
        "_words(segments.lengths[group], seed, hashes[group], stream)",
        "_words(segments.lengths[group], seed, hashes[: group.stop - group.start], stream)",
        "tests/kernels/test_select_numpy.py::"
        "test_words_drawn_in_any_groups_are_those_of_the_reference",
    ),
    Mutation(
        "NumPy draws the words of all segments together, however many there are.",
        SELECT_NUMPY,
        "if rows and rows + length > _ROWS_AT_ONCE:",
        "if False:",
        "tests/kernels/test_select_numpy.py::test_words_of_many_segments_are_not_drawn_together",
    ),
    Mutation(
        "NumPy serves a selection whose operators a dispatch mode should see.",
        SELECT_NUMPY,
        "and not is_in_torch_dispatch_mode()",
        "and True",
        "tests/kernels/test_select_numpy.py::"
        "test_what_watches_the_operators_of_torch_sees_them[a dispatch mode-topk]",
    ),
    Mutation(
        "Diversity starts with the first row.",
        "kernels/_max_min.py",
        "nearest = torch.minimum(distance.amin(1), limit)",
        "nearest = limit.clone()",
        "tests/kernels/test_diversity_select.py::"
        "test_starts_with_the_row_whose_nearest_other_row_is_farthest[eager]",
    ),
    Mutation(
        "Diversity picks a row that it has picked already.",
        "kernels/_max_min.py",
        "own.fill_(-torch.inf)",
        "own.fill_(torch.inf)",
        "tests/kernels/test_diversity_select.py::test_copies_of_one_row_are_all_distinct_picks"
        "[eager]",
    ),
    Mutation(
        "Diversity has no direction for a row of zeros, and no distance to it.",
        "kernels/_max_min.py",
        "self._directed = self.finite & (self._norm >= _MIN_NORM)",
        "self._directed = self.finite",
        "tests/kernels/test_diversity_select.py::test_a_zero_row_is_at_distance_one_from_all[eager]",
    ),
    Mutation(
        "A row that is not finite is the farthest of all.",
        "kernels/_max_min.py",
        "masked_fill_(~self.finite, _BELOW_DISTANCES)",
        "masked_fill_(~self.finite, torch.inf)",
        "tests/kernels/test_diversity_select.py::"
        "test_rows_that_are_not_finite_come_last_and_change_nothing[eager-nan]",
    ),
    Mutation(
        "The distance of a row of weight 0 to a row that is not finite is NaN.",
        "kernels/_max_min.py",
        "distance.mul_(weights).nan_to_num_(torch.inf, torch.inf)",
        "distance.mul_(weights)",
        "tests/kernels/test_diversity_select.py::test_agrees_with_the_plain_greedy[weights]",
    ),
    Mutation(
        "A copy under a large weight is behind rows that are not finite.",
        "kernels/_max_min.py",
        "_BELOW_DISTANCES = -3e38",
        "_BELOW_DISTANCES = -1e30",
        "tests/kernels/test_diversity_weights.py::test_no_weight_is_too_large[eager]",
    ),
    Mutation(
        "Of rows of weight 0 the kernel picks those first that are apart from others.",
        "kernels/_distances.py",
        "distance * weight + 0.0",
        "distance * weight",
        "tests/kernels/test_diversity_weights.py::"
        "test_rows_of_weight_0_are_picked_by_position[triton]",
    ),
    Mutation(
        "The first pick does not look at weights.",
        "kernels/_distances.py",
        "        smallest = weighted(smallest, i_weight)",
        "        smallest = weighted(smallest, 1.0)",
        "tests/kernels/test_diversity_weights.py::test_a_weight_brings_a_row_to_the_front[triton]",
    ),
    Mutation(
        "What the rounds leave is picked without weights.",
        ROUNDS,
        "lowered(nearest, dots, column, pick, i_inverse, j_inverse, j_weight, SCALED)",
        "lowered(nearest, dots, column, pick, i_inverse, j_inverse, None, SCALED)",
        ROUNDS_TEST + "test_rounds_are_the_plain_greedy_with_weights[3]",
    ),
    Mutation(
        "What rounding leaves of a copy of a picked row counts as a gain.",
        "kernels/_determinant.py",
        "np.multiply(residual, residual > SPENT, out=residual)",
        "np.maximum(residual, 0, out=residual)",
        DPP + "copies_of_a_picked_row_have_no_gain_though_rounded[eager]",
    ),
    Mutation(
        "The kernel lets rounding decide between equal determinants.",
        "kernels/dpp_select.py",
        "first(gain >= tl.minimum(best, best * NEARLY), position)",
        "first(gain >= best, position)",
        DPP + "nearly_equal_gains_go_to_the_lowest_row[triton]",
    ),
    Mutation(
        "A vector of the factor is left out of the residuals.",
        "kernels/dpp_select.py",
        "there = begin + i < step",
        "there = begin + i + 1 < step",
        GAINS + "every_pick_has_the_largest_gain_given_the_picks_before_it"
        "[triton-dpp-63-16-30-dtype0]",
    ),
    Mutation(
        "Of the rows whose bound reaches the largest gain only the first few are evaluated.",
        "kernels/_coverage.py",
        "rows = np.flatnonzero((bound >= least) & (fresh < step))",
        "rows = np.flatnonzero(fresh < 1)",
        COVERAGE + "every_pick_has_the_largest_gain_when_all_weights_are_one",
    ),
    Mutation(
        "The kernel picks a row by a bound that is no longer its gain.",
        "kernels/coverage_select.py",
        "2 * position + (bound < 0).to(tl.int32)",
        "2 * position + (value >= least).to(tl.int32)",
        GAINS + "every_pick_has_the_largest_gain_given_the_picks_before_it"
        "[triton-coverage-63-16-30-dtype0]",
    ),
    Mutation(
        "Segments of all sizes share a group, whose longest decides on the order of sums.",
        "kernels/coverage_select.py",
        "tiles = [tile(n, _TILES) for n in lengths]",
        "tiles = [0 for n in lengths]",
        COVERAGE + "segments_of_one_tile_share_a_group",
    ),
    Mutation(
        "An infinite weight is larger than all others.",
        "kernels/_gains.py",
        "~(weights.abs() < _LARGEST)",
        "weights.isnan()",
        COVERAGE + "rows_whose_weight_is_not_finite_come_last_but_are_covered[eager-inf]",
    ),
    Mutation(
        "A round goes on when a row that is no candidate may be farther.",
        ROUNDS,
        "picking = ahead & (done < k)",
        "picking = done < k",
        ROUNDS_TEST + "test_rounds_are_the_plain_greedy_on_the_same_matrix[3-all rows]",
    ),
    Mutation(
        "Rows that are as far as the last candidate of a program are picked in any order.",
        ROUNDS,
        "((best == bound) & (pick <= bound_position))",
        "(best == bound)",
        ROUNDS_TEST + "test_equal_distances_are_picked_by_position",
    ),
    Mutation(
        "The rows farthest from their nearest other row are all picked, not the first alone.",
        ROUNDS,
        "bound = tl.where(done == 0, FARTHEST, bound)",
        "bound = tl.where(done == 0, PICKED, bound)",
        ROUNDS_TEST + "test_rounds_are_the_plain_greedy_on_the_same_matrix[3-all rows]",
    ),
    Mutation(
        "What the rounds leave is not picked.",
        ROUNDS,
        "    while done < k:",
        "    while done > k:",
        ROUNDS_TEST + "test_what_the_rounds_leave_is_picked_after_them",
    ),
    Mutation(
        "The library multiplies rows that start anywhere.",
        "kernels/_dot_products.py",
        "return x.element_size() == 2 and aligned and",
        "return x.element_size() == 2 and",
        ROUNDS_TEST + "test_only_aligned_rows_of_16_bits_are_multiplied_by_the_library",
    ),
    Mutation(
        "Whether a segment counts as long depends on its batch.",
        "kernels/_distances.py",
        "other_kind = kinds[segment] != kinds[start]",
        "other_kind = False",
        ROUNDS_TEST + "test_long_segments_share_no_group_with_others",
    ),
    Mutation(
        "Distances are made from a constant of the default dtype.",
        "kernels/_max_min.py",
        "self.ceiling = torch.ones_like(self._norm).masked_fill_(~self.finite, torch.inf)",
        "self.ceiling = torch.where(self.finite, 1.0, torch.inf)",
        "tests/runtime/test_patch_defaults.py::"
        "test_a_default_dtype_changes_nothing[llava-padded-divprune]",
    ),
    Mutation(
        "Counts of a prefill are copied from the default device.",
        RUNTIME + "host_read.py",
        "host = torch.as_tensor(values, dtype=torch.int64, device=there)",
        "host = torch.as_tensor(values, dtype=torch.int64)",
        "tests/runtime/test_patch_defaults.py::test_a_default_device_changes_nothing[padded-vtw]",
    ),
    Mutation(
        "Diversity makes the matrix of a segment of any length.",
        REFERENCE,
        "if needed(part.max_seqlen) > _MAX_BYTES:",
        "if False:",
        "tests/kernels/test_memory.py::test_diversity_keeps_to_its_limit[one-torch.float32]",
    ),
    Mutation(
        "Diversity makes one row of distances at a time on a CPU.",
        "kernels/_max_min.py",
        "size = min(max(2 * picked, _FEWEST_AHEAD), most)",
        "size = 1",
        "tests/kernels/test_diversity_select.py::test_few_rows_of_distances_are_made_in_vain",
    ),
    Mutation(
        "All segments are padded to the longest at once.",
        REFERENCE,
        "number > cuts[-1] and (number + 1 - cuts[-1]) * bytes_of(longest) > _MAX_BYTES",
        "False",
        "tests/kernels/test_memory.py::"
        "test_one_long_segment_among_many_short_ones_is_not_padded_to[topk]",
    ),
    Mutation(
        "DART's cosines are rounded under autocast.",
        "vtfast/methods/dart.py",
        "torch.mm(tokens, towards.T, out=cosines[rows])",
        "cosines[rows] = tokens @ towards.T",
        "tests/methods/test_method_dart.py::"
        "test_dart_keeps_the_same_tokens_under_autocast[one-picture]",
    ),
    Mutation(
        "Autocast rounds the attention of fp32 queries.",
        "kernels/_sdpa.py",
        "with torch.autocast(q.device.type, enabled=False):",
        "if True:",
        "tests/kernels/test_default_dtype.py::"
        "test_decoding_with_host_lengths_gives_the_same_bits_under_other_defaults[eager-equal]",
    ),
    Mutation(
        "A seed of NumPy is refused.",
        "kernels/_checks.py",
        "if not is_host_int(value):",
        "if type(value) is not int:",
        "tests/kernels/test_random_select.py::"
        "test_every_count_and_number_may_be_a_numpy_integer[NumPy-int64]",
    ),
    Mutation(
        "Diversity needs NumPy on a CPU.",
        "kernels/_max_min.py",
        "_greedy_loop_numpy if numpy_reads(limit) else",
        '_greedy_loop_numpy if limit.device.type == "cpu" else',
        "tests/kernels/test_without_numpy.py::test_every_op_gives_the_same_without_numpy",
    ),
    Mutation(
        "What `make hub` writes registers its ops under vtfast's name.",
        "tests/helpers/write_hub.py",
        'name = f"_{MODULE}_{backend}_{content[:10]}"',
        'name = "vtfast"',
        "tests/hub/test_hub.py::test_ops_do_not_collide_with_those_of_vtfast",
    ),
    Mutation(
        "What `make hub` writes has a file that no op needs.",
        "tests/helpers/write_hub.py",
        "missing = [module for module, _ in public]",
        'missing = ["compact", *(module for module, _ in public)]',
        "tests/hub/test_hub.py::test_every_file_is_needed_to_load_the_ops",
    ),
    Mutation(
        "Doctor takes any package `kernels` for Hugging Face's.",
        "vtfast/cli/doctor.py",
        "return None if is_its_own else path",
        "return None",
        "tests/cli/test_doctor.py::test_a_package_kernels_that_breaks_transformers_is_named",
    ),
    Mutation(
        "A key's score is the most that a head pays it, not the mean of the heads.",
        REFERENCE,
        "logits.softmax(-1).mean((0, 1))",
        "logits.softmax(-1).amax((0, 1))",
        "tests/kernels/test_last_query_scores.py::test_scores_of_a_sequence_sum_to_one[eager]",
    ),
    Mutation(
        "The first query of a sequence, not the last, is the one that sees all its keys.",
        "kernels/_sdpa.py",
        ".tril(num_keys - num_queries)",
        ".tril()",
        "tests/kernels/test_ragged_attention.py::test_errs_at_most_twice_as_much_as_sdpa",
    ),
    Mutation(
        "Attention reads the keys in their packed order and ignores the index.",
        REFERENCE,
        "k, v = gather_rows(k_index, k, v)",
        "k, v = k[: len(k_index)], v[: len(k_index)]",
        "tests/kernels/test_ragged_attention.py::test_reads_keys_through_an_index_with_shared_rows",
    ),
    Mutation(
        "In decoding, every sequence starts where the cache does.",
        REFERENCE,
        "starts = back_to_back(lengths)",
        "starts = [0] * len(lengths)",
        "tests/kernels/test_ragged_decode.py::test_starts_default_to_back_to_back",
    ),
    Mutation(
        "An image hash does not tell the order of a picture's pixels.",
        "kernels/_mix64.py",
        "bits.long().add_(of_column).add_(first[:, None])",
        "bits.long().add_(first[:, None])",
        HASH + "test_a_hash_depends_on_the_order_of_the_values[eager]",
    ),
    Mutation(
        "The hash of a picture with NaN depends on the device.",
        "kernels/_mix64.py",
        ".nan_to_num(_NAN, _INF, -_INF)",
        "",
        HASH + "test_fp32_is_rounded_to_the_nearest_bfloat16_to_the_even_one_of_two[eager]",
    ),
    Mutation(
        "A kernel hashes NaN by its own bits.",
        "kernels/image_hash.py",
        "0x7FC00000, word)",
        "word, word)",
        HASH + "test_every_number_of_16_bits_is_rounded_so[triton-torch.bfloat16]",
    ),
    Mutation(
        "A kernel rounds pixels half way between two bfloat16 numbers up.",
        "kernels/image_hash.py",
        "0x7FFF + ((word >> 16) & 1)",
        "0x8000",
        HASH + "test_fp32_is_rounded_to_the_nearest_bfloat16_to_the_even_one_of_two[triton]",
    ),
    Mutation(
        "The grid of an empty picture that begins where a block does is not hashed.",
        "kernels/image_hash.py",
        "(end <= begin) & (end - size < begin) &",
        "(end <= begin) &",
        HASH + "test_grids_cut_the_patches_and_are_mixed_in[triton-empty]",
    ),
    Mutation(
        "The grid of an empty picture after the last block is not hashed.",
        "kernels/image_hash.py",
        "(values // _BLOCK + 1,)",
        "(max(1, -(-values // _BLOCK)),)",
        HASH + "test_grids_cut_the_patches_and_are_mixed_in[triton-empty at the end]",
    ),
    Mutation(
        "A program hashes the first picture of its block only.",
        "kernels/image_hash.py",
        "while (image < images) & (first < end):",
        "if (image < images) & (first < end):",
        HASH + "test_grids_cut_the_patches_and_are_mixed_in[triton-two]",
    ),
    Mutation(
        "A program overwrites what others have of a picture.",
        "kernels/image_hash.py",
        'tl.atomic_add(out_ptr + image, part.to(tl.int64), sem="relaxed")',
        "tl.store(out_ptr + image, part.to(tl.int64))",
        HASH + "test_grids_cut_the_patches_and_are_mixed_in[triton-several blocks]",
    ),
    Mutation(
        "A patch hashes pictures by another implementation than it was asked for.",
        RUNTIME + "selection.py",
        "visual.image_hash(self._config.impl)",
        'visual.image_hash("auto")',
        "tests/runtime/test_image_hash.py::"
        "test_pictures_are_hashed_by_the_implementation_of_the_patch[triton-forward]",
    ),
    # -- compiled kernels ----------------------------------------------------------------------
    Mutation(
        "Programs lower the distance to the nearest row by a load and a store.",
        "kernels/_distances.py",
        """    tl.atomic_min(nearest, ordered_bits(smallest), mask=i_live, sem="relaxed")""",
        """    known = tl.load(nearest, mask=i_live, other=0)
    tl.store(nearest, tl.minimum(known, ordered_bits(smallest)), mask=i_live)""",
        COMPILED
        + "cases.py::test_an_odd_address_follows_an_even_one[diversity_select-torch.float32]",
    ),
    Mutation(
        "A kernel compiled for addresses that are multiples of 16 bytes is launched on others.",
        "kernels/_repeat.py",
        "if pointers % 16 == 0 and self._compiled is not None:",
        "if self._compiled is not None:",
        "tests/kernels/test_repeat.py::test_what_is_not_aligned_is_always_asked_about",
    ),
    Mutation(
        "The layout is chosen by what is padding before the first stage alone.",
        "vtfast/methods/padding.py",
        "lengths = lengths_after(lengths, stage.budgeted(segments), after)",
        "pass",
        "tests/runtime/test_choose_layout.py::test_the_share_is_that_of_all_layers[0.19-packed]",
    ),
    Mutation(
        "A step of unequal samples is decoded over tokens of the step before.",
        RUNTIME + "packed_kv_cache.py",
        "                self._ended.add_(1)",
        "                pass",
        PATCH + "memory.py::test_steps_write_in_place_while_room_remains",
    ),
    Mutation(
        "Layers without a stage keep their hooks.",
        RUNTIME + "hooks.py",
        "self._hook(self.config, self._hooks_all)",
        "self._hook(self.config, True)",
        PATCH + "host_cost.py::test_calls_of_python_functions_that_a_step_adds[auto]",
    ),
    Mutation(
        "Padded: attention sees the mask of the first stage in later ones.",
        RUNTIME + "state.py",
        "            self.span = entry\n",
        "            self.span = self.span or entry\n",
        PATCH
        + "parity.py::test_logits_of_surviving_tokens_are_the_oracles[llava-padded-four-stages]",
    ),
    Mutation(
        "One split: its result is stored before it is divided by the sum of weights.",
        "kernels/ragged_decode.py",
        "out = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]",
        "out = acc",
        "tests/kernels/test_repeat.py::test_one_split_needs_no_merge_and_gives_the_same_bits[128]",
    ),
    # -- several processes ---------------------------------------------------------------------
    Mutation(
        "Tensor parallel: scores are those of a process's own heads.",
        "vtfast/methods/context.py",
        "torch.distributed.all_reduce(own, group=self.group)",
        "own *= self.group.size()",
        PATCH + "tensor_parallel.py::"
        "test_every_method_keeps_the_tokens_of_the_whole_model_in_both_processes",
    ),
    Mutation(
        "Tensor parallel: a method that reads attention sees its own process's heads twice.",
        "vtfast/methods/context.py",
        "return torch.cat(parts, 1)",
        "return torch.cat([own] * len(parts), 1)",
        PATCH + "tensor_parallel.py::test_a_method_that_reads_attention_sees_all_heads[llava]",
    ),
    Mutation(
        "Plans are searched with questions held out.",
        TUNING + "search.py",
        "tried[plan] = ask(plan, questions[:size])",
        "tried[plan] = ask(plan, held_out[:size])",
        SEARCHED + "no_question_held_out_is_asked_before_the_search_has_ended",
    ),
    Mutation(
        "The final word goes on after a plan has failed.",
        TUNING + "search.py",
        "        if not passes(found.tested[plan]):\n            break",
        "        if not passes(found.tested[plan]):\n            continue",
        SEARCHED + "the_final_word_ends_at_the_first_plan_that_fails",
    ),
    Mutation(
        "A plan passes by its observed loss, not by the bound.",
        TUNING + "search.py",
        "return most <= max_loss",
        "return lost - gained <= max_loss * len(held_out)",
        SEARCHED + "plans_that_lose_too_much_are_seldom_named[0.95]",
    ),
    Mutation(
        "Finalists are tested from the cheapest on.",
        TUNING + "search.py",
        "order = sorted(bounds, key=lambda plan: (bounds[plan], -plan))",
        "order = sorted(bounds)",
        SEARCHED + "the_safest_finalist_is_tested_first",
    ),
    Mutation(
        "Finalists may cost as much as one another.",
        TUNING + "search.py",
        "_STEP = 0.2",
        "_STEP = 0.0",
        SEARCHED + "the_next_finalist_costs_a_fifth_more_or_saves_a_fifth_less",
    ),
    Mutation(
        "A plan that cannot pass any more is asked on.",
        TUNING + "search.py",
        "if not passes(tried[plan]) or (",
        "if (size == len(questions) and not passes(tried[plan])) or (",
        SEARCHED + "a_plan_is_out_as_soon_as_it_could_not_pass_any_more",
    ),
    Mutation(
        "What a log has counts as asked again.",
        "vtfast/information/records.py",
        "{**self.done.get(sample, {}), **record} if self._adds else record",
        "record",
        TUNED + "a_log_answers_what_was_asked_before_whatever_is_asked_now",
    ),
    Mutation(
        "A plan measured on a model of other layers is taken.",
        "vtfast/plan.py",
        "self.measured.check(num_layers, model_type)",
        "self.measured.check(self.measured.num_layers, model_type)",
        FILES + "another_model_is_refused",
    ),
    Mutation(
        "A plan file cannot tell one token from all of them.",
        "vtfast/plan_file.py",
        '"keep": stage.keep,',
        '"keep": float(stage.keep),',
        FILES + "what_was_saved_is_loaded",
    ),
    Mutation(
        "The seed of a plan file wins over the caller's.",
        RUNTIME + "config.py",
        "for s in (self.seed, self.plan.seed) if s",
        "for s in (self.plan.seed, self.seed) if s",
        "tests/evaluation/test_plan_files_taken.py::"
        "test_the_seed_is_the_callers_then_the_files_then_0",
    ),
    Mutation(
        "FSDP: weights of an attention module that is sharded apart are not gathered for scores.",
        MODELS + "parallel.py",
        'if hasattr(attention, "unshard"):',
        'if hasattr(attention, "never"):',
        PATCH + "fsdp.py::test_a_sharded_model_does_what_one_process_does[loss-and-gradients]",
    ),
    Mutation(
        "FSDP: processes gather the final norm as often as their own pictures ask for it.",
        RUNTIME + "selection.py",
        "norm = self._parts.norm.forward",
        "norm = self._parts.norm",
        PATCH + "fsdp.py::test_a_sharded_model_does_what_one_process_does[loss-and-gradients]",
    ),
    Mutation(
        "FSDP1: hooks run before the weights of a layer are gathered.",
        MODELS + "base.py",
        "layers = tuple(map(unwrapped, text.layers))",
        "layers = tuple(text.layers)",
        PATCH + "fsdp.py::test_a_sharded_model_does_what_one_process_does[losses-under-fsdp1]",
    ),
    Mutation(
        "Training: scores draw random numbers that a checkpoint does not draw again.",
        RUNTIME + "selection.py",
        "enabled=layer.training",
        "enabled=False",
        PATCH + "checkpointing.py::test_scores_leave_the_random_numbers_of_a_layer_alone[llava]",
    ),
    Mutation(
        "With vLLM, a request for 1, as JSON writes 1.0, keeps one token.",
        "vtfast/vllm/settings.py",
        "return float(value)",
        "return value",
        "tests/serving/test_settings.py::test_json_has_one_kind_of_number[1-1.0]",
    ),
    Mutation(
        "With vLLM, a plan with a second stage is taken for its first.",
        "vtfast/vllm/settings.py",
        "stage, *more = plan.stages",
        "stage, more = plan.stages[0], ()",
        "tests/serving/test_settings.py::test_a_plan_of_two_stages_is_refused",
    ),
    # -- methods of users -------------------------------------------------------------------------
    Mutation(
        "The options that a user's method declares are not passed to it.",
        METHODS + "own.py",
        "given = {} if self.options is None else _own(ctx.options)",
        "given = {}",
        OWN + "options_that_a_function_declares_are_passed_by_name",
    ),
    Mutation(
        "A misspelt option of a user's method is taken.",
        METHODS + "stage.py",
        "method(stage.method).check(stage)",
        "method(stage.method)",
        OWN + "an_option_that_is_misspelt_or_missing_is_refused_before_anything_changed",
    ),
    Mutation(
        "The preset of a user's method that reads scores prunes before the language model.",
        METHODS + "registry.py",
        "add_preset(name, 2 if scores else 0)",
        "add_preset(name, 0)",
        OWN + "its_name_is_a_preset_at_an_average_budget[True-2]",
    ),
    Mutation(
        "An error of a user's method counts as one of the sample.",
        "vtfast/information/bad_samples.py",
        "if was_raised_in_a_method(error) and",
        "if not was_raised_in_a_method(error) and",
        OWN + "an_error_of_a_method_is_no_fault_of_a_sample",
    ),
    Mutation(
        "A log does not notice that a user's method was edited.",
        METHODS + "registry.py",
        "why_unsupported=why, code=code_of(select)",
        "why_unsupported=why",
        OWN + "a_log_notices_that_a_method_was_edited",
    ),
    Mutation(
        "A log does not notice that a function that compares answers was edited.",
        "vtfast/evaluation/compare.py",
        """'a function')} {code_of(match)}\"""",
        """'a function')}\"""",
        OWN + "a_log_notices_that_a_way_to_compare_answers_was_edited",
    ),
    Mutation(
        "A file beside the one that --import names hides a library.",
        "vtfast/cli/_options.py",
        "sys.path.append(str(file.resolve().parent))",
        "sys.path.insert(0, str(file.resolve().parent))",
        IMPORTED + "files_that_are_called_like_libraries_do_not_hide_them",
    ),
    Mutation(
        "A picture's JSON is written over the plan that was asked for.",
        "vtfast/cli/evaluate.py",
        "protect(asked, out, data, log, *values.plan_files(plan or ()))",
        "protect(asked, out, data, log)",
        IMPORTED + "a_picture_beside_the_plan_does_not_write_over_it[evaluate]",
    ),
    Mutation(
        "A preset at another budget moves its horizon.",
        "vtfast/plan.py",
        "horizon=self.horizon if own else horizon,",
        "horizon=self.horizon - 1 if own and self.horizon else horizon,",
        "tests/runtime/test_handle_set_budget.py::test_"
        "without_a_plan_the_preset_stays_with_its_horizon_and_its_budget",
    ),
    Mutation(
        "A plan for vLLM has more than one stage.",
        TUNING + "find_plan.py",
        "p for p in space(num_layers, layer, names, engine=engine) if",
        "p for p in space(num_layers, layer, names) if",
        TUNED + "a_plan_for_vllm_is_one_that_its_settings_take",
    ),
    Mutation(
        "Each budget of a plan has a colour of its own.",
        "vtfast/evaluation/results.py",
        "row.name.removesuffix(ending)",
        "row.name",
        "tests/evaluation/test_comparison.py::test_rows_of_one_plan_are_one_curve",
    ),
    # -- long runs, and what they show ------------------------------------------------------------
    Mutation(
        "Studies: a log finds samples whose picture is another one now.",
        "vtfast/inputs/data.py",
        "digest.update(_digest_of(image))",
        "digest.update(b'')",
        CONTINUED + "a_run_goes_on_with_every_sample_it_has[score-repainted]",
    ),
    Mutation(
        "Studies: a log is of the longest answer in a data file.",
        "vtfast/evaluation/compare.py",
        'logged = {**settings, "max_new_tokens": max_new_tokens}',
        "logged = settings",
        CONTINUED + "a_run_goes_on_with_every_sample_it_has[evaluate-extended]",
    ),
    Mutation(
        "Studies: the second of two equal samples is taken for the first.",
        "vtfast/inputs/data.py",
        'key if seen[key] == 1 else f"{key}.{seen[key]}"',
        "key",
        CONTINUED + "two_equal_samples_are_two_samples[score]",
    ),
    Mutation(
        "Studies: one process does not read what several have written.",
        "vtfast/information/records.py",
        r"(\.\d+)?",
        "",
        "tests/evaluation/test_evaluate.py"
        "::test_two_processes_share_the_questions_and_give_the_same_table",
    ),
    Mutation(
        "Studies: a bad sample takes its whole batch with it.",
        "vtfast/information/bad_samples.py",
        "if len(block) > 1:",
        "if not block:",
        "tests/information/test_bad_samples.py"
        "::test_a_bad_sample_is_skipped_and_named_with_the_reason[horizon-refused_picture]",
    ),
    Mutation(
        "Studies: a patched model makes every sample a bad one.",
        "vtfast/information/bad_samples.py",
        "return not isinstance(error, InputError)",
        "return False",
        "tests/information/test_bad_samples.py"
        "::test_what_is_no_fault_of_a_sample_ends_the_run[score]",
    ),
    Mutation(
        "Horizon: that none of a few answers is lost counts as proof.",
        "vtfast/information/shares.py",
        "return 1 - (1 - confidence) ** (1 / n)",
        "return 0.0",
        "tests/information/test_information_horizon.py"
        "::test_none_lost_of_few_samples_shows_no_horizon_yet",
    ),
    Mutation(
        "Horizon: a plan does not say that its horizon is not shown.",
        "vtfast/plan.py",
        'doubt = getattr(horizon, "doubt", "")',
        'doubt = ""',
        "tests/information/test_information_horizon.py"
        "::test_a_plan_from_a_horizon_that_is_not_shown_keeps_its_stage_and_says_so",
    ),
    Mutation(
        "Toys: training leaves the features of DeepStack out.",
        "vtfast/toy/qwen.py",
        "if seen.added:",
        "if not seen.visual.numel():",
        "tests/toy/test_toy_train.py"
        "::test_a_packed_turn_is_seen_as_if_it_were_alone[qwen3-(96, 96)]",
    ),
    Mutation(
        "Scores: features that are added behind the first layers are left out.",
        "vtfast/information/probe.py",
        "if number in self._added:",
        "if number < 0:",
        SCORES + "[qwen3-mean_token]",
    ),
    Mutation(
        "Scores: features are not added behind the first layer that is continued from.",
        "vtfast/information/probe.py",
        "if number >= min(layers):",
        "if number > min(layers):",
        SCORES + "[qwen3-mean_token]",
    ),
    Mutation(
        "Scores: padding is a token to a recurrent layer.",
        "vtfast/information/probe.py",
        "attention_mask=padded.real",
        "attention_mask=None",
        SCORES + "[qwen3.5-mean_token]",
    ),
    Mutation(
        "Scores: a recurrent layer does not see the tokens in front of a kept one.",
        "vtfast/information/probe.py",
        "attention_mask=padded.real",
        "attention_mask=padded.own",
        SCORES + "[qwen3.5-first_token]",
    ),
    Mutation(
        "Tables: columns are narrowed below their longest word.",
        "vtfast/cli/_terminal.py",
        "for floor in (least, [1] * len(widths)):",
        "for floor in ([1] * len(widths),):",
        "tests/cli/test_tables.py::test_a_column_is_narrowed_only_down_to_its_longest_word",
    ),
]


class Outcome(NamedTuple):
    """The outcome of a mutation: "red" (its test failed, as it must), "green", or "broken"."""

    mutation: Mutation
    verdict: str
    reason: str
    seconds: float


def apply(mutation: Mutation, source: str) -> str:
    """The source with the break in it. Raises ValueError where `old` does not occur just once."""
    found = source.count(mutation.old)
    if found != 1:
        raise ValueError(f"the code to replace occurs {found} times in {mutation.file}, not once")
    return source.replace(mutation.old, mutation.new)


@contextmanager
def applied(mutation: Mutation, copy: Path) -> Iterator[None]:
    """Break one file of a copy of the repository, and restore it afterwards."""
    path = copy / mutation.file
    source = path.read_text()
    path.write_text(apply(mutation, source))
    try:
        yield
    finally:
        path.write_text(source)


def verdict(status: int) -> str:
    """The verdict that follows from the exit status of pytest.

    1: a test failed, so the break was seen. Above 1 pytest could not import, collect or find the
    test (or had none to run), which says nothing about the break.
    """
    return {0: "green", 1: "red"}.get(status, "broken")


def pytest_in(copy: Path, *tests: str) -> tuple[int, str]:
    """Run tests of a copy on the code of that copy; exit status and what pytest printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    # Without .pyc files no code from before a mutation can be found in place of the code itself.
    environment |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    if any(test.startswith(COMPILED) for test in tests):
        environment["VTFAST_TEST_DEVICE"] = "sm_90"
    environment["VTFAST_TEST_FAMILIES"] = "llava qwen qwen3 qwen3.5"
    environment["COLUMNS"] = "400"  # room for what failed, on the line that says which test did
    options = ("-n", "0", "-q", "--tb=line", "-p", "no:cacheprovider")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT * len(tests),
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end in {TIME_LIMIT} s"
    return done.returncode, done.stdout


def reasons(output: str) -> list[str]:
    """The lines of pytest's summary that name what failed, or its last line."""
    lines = [line for line in output.splitlines() if line.strip()]
    return [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-1:]


class Copies:
    """Copies of the repository, one for each test that runs at a time."""

    def __init__(self, folder: Path, number: int) -> None:
        sys.path.insert(0, str(ROOT / "tests" / "helpers"))
        from repository import repository_files

        self._free: SimpleQueue[Path] = SimpleQueue()
        for i in range(number):
            for file in repository_files():
                (folder / str(i) / file).parent.mkdir(parents=True, exist_ok=True)
                copy2(ROOT / file, folder / str(i) / file, follow_symlinks=False)
            self._free.put(folder / str(i))

    def run(self, *tests: str, mutation: Mutation | None = None) -> tuple[int, str]:
        """Run tests in a free copy, with the break of a mutation if one is given."""
        copy = self._free.get()
        try:
            if mutation is None:
                return pytest_in(copy, *tests)
            with applied(mutation, copy):
                return pytest_in(copy, *tests)
        finally:
            self._free.put(copy)

    def try_out(self, mutation: Mutation) -> Outcome:
        """Break the code and run the test that must fail."""
        started = time.perf_counter()
        try:
            status, output = self.run("-x", mutation.test, mutation=mutation)
        except ValueError as error:
            status, output = -1, str(error)
        seconds = time.perf_counter() - started
        return Outcome(mutation, verdict(status), reasons(output)[0], seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Break vtfast in small ways, one at a time, in a copy of the repository, and "
        "report every break that its test does not see. The exit status is 0 if all are seen.",
        epilog="Each break takes a few seconds more than pytest needs to start. A break is listed "
        "as green when its test passes all the same: make the test stricter. It is listed as "
        "broken when it shows nothing: its code is no longer there, or pytest cannot run its test. "
        "The list is in this file; its first lines say how to add to it.",
    )
    parser.add_argument(
        "-k", metavar="WORD", default="", help="only breaks with this in sentence, file or test"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=os.cpu_count() or 1, help="at a time (all cores)"
    )
    options = parser.parse_args(arguments)
    chosen = [
        m for m in MUTATIONS if options.k.lower() in " ".join((m.what, m.file, m.test)).lower()
    ]
    if not chosen or options.jobs < 1:
        parser.error(
            f"no break has {options.k!r} in it" if not chosen else "--jobs takes 1 or more"
        )

    with TemporaryDirectory(prefix="vtfast-mutants-") as folder:
        copies = Copies(Path(folder), min(options.jobs, len(chosen)))
        print(f"Breaks to try: {len(chosen)}. First their tests run without them.", flush=True)
        tests = sorted({m.test for m in chosen}, key=lambda test: test.startswith(COMPILED))
        for _, some in groupby(tests, lambda test: test.startswith(COMPILED)):
            status, output = copies.run(*some)
            if status != 0:
                print("These tests do not pass on the code as it is, so they show nothing:")
                print(*reasons(output), sep="\n")
                return 1
        with ThreadPoolExecutor(options.jobs) as pool:
            tried = as_completed([pool.submit(copies.try_out, m) for m in chosen])
            outcomes = list(_told((job.result() for job in tried), len(chosen)))
    return _report(outcomes)


def _told(outcomes: Iterable[Outcome], number: int) -> Iterator[Outcome]:
    """The same outcomes, each printed as soon as it is known."""
    for i, outcome in enumerate(outcomes, 1):
        left = f"[{i}/{number}] {outcome.verdict:6} {outcome.seconds:3.0f} s"
        print(f"{left}  {outcome.mutation.what}\n{'':10}{outcome.reason}", flush=True)
        yield outcome


def _report(outcomes: list[Outcome]) -> int:
    """Print the breaks that their tests did not see; return the exit status."""
    unseen = [o for o in outcomes if o.verdict != "red"]
    print(f"\n{len(outcomes) - len(unseen)} of {len(outcomes)} breaks turned their test red.")
    for outcome in sorted(unseen):
        print(f"\n{outcome.verdict}: {outcome.mutation.what}")
        print(f"  file    {outcome.mutation.file}\n  test    {outcome.mutation.test}")
        print(f"  pytest  {outcome.reason}")
    return bool(unseen)


if __name__ == "__main__":
    sys.exit(main())
