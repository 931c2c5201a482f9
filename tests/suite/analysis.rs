//! Every analysis against TransformerLens' figures, for every family that there are fixtures of: one table of keys, no row a family.

use crate::common::{families, processed_like_transformer_lens, Fixture, Tally};
use tch::{Kind, Tensor};
use tch_lens::analysis::Scale;
use tch_lens::{
    AccumulateOptions, ActivationCache, Answer, DecomposeOptions, FullOptions, HeadOptions, HookedTransformer,
    LoadOptions, Mode, NeuronOptions, NeuronResultOptions, Result, Slice, Target,
};

const TOLERANCE: f64 = 1e-4;

/// What a key asks for, taken apart: `decompose_resid.layer_1.attn.mlp_input.ln_1.pos_-1`.
struct Key<'a> {
    parts: Vec<&'a str>,
}

impl<'a> Key<'a> {
    fn has(&self, part: &str) -> bool {
        self.parts.contains(&part)
    }

    fn after(&self, prefix: &str) -> Option<&'a str> {
        self.parts.iter().find_map(|part| part.strip_prefix(prefix))
    }

    fn target(&self) -> Target {
        match (self.after("layer_"), self.has("mlp_input")) {
            (None | Some("None" | "-1"), _) => Target::Unembed,
            (Some(layer), false) => Target::Attn(layer.parse().unwrap()),
            (Some(layer), true) => Target::Mlp(layer.parse().unwrap()),
        }
    }

    fn ln(&self) -> bool {
        self.has("ln_1")
    }

    fn pos(&self) -> Slice {
        self.after("pos_").map_or(Slice::All, slice)
    }
}

/// `-1`, `2:4`, `1:6:2`, `0::16` or `list_0_3`.
fn slice(text: &str) -> Slice {
    if let Some(list) = text.strip_prefix("list_") {
        return Slice::List(list.split('_').map(|i| i.parse().unwrap()).collect());
    }
    let numbers: Vec<Option<i64>> = text.split(':').map(|i| i.parse().ok()).collect();
    match numbers[..] {
        [index] => Slice::Index(index.unwrap()),
        [start, end] => Slice::Range { start, end, step: 1 },
        [start, end, step] => Slice::Range { start, end, step: step.unwrap() },
        _ => panic!("{text} is no slice"),
    }
}

/// The figure and labels that a key asks for; `None` where it is no analysis of a cache.
fn evaluate(name: &str, cache: &ActivationCache, fixture: &Fixture) -> Result<Option<(Tensor, Option<Vec<String>>)>> {
    let key = Key { parts: name.split('.').collect() };
    let (target, ln, pos) = (key.target(), key.ln(), key.pos());
    let project = || answer_directions(cache.model());
    let stack = match key.parts[0] {
        "decompose_resid" => {
            let mode = if key.has("attn") {
                Mode::Attn
            } else if key.has("mlp") {
                Mode::Mlp
            } else {
                Mode::All
            };
            let embeds = !key.has("no_embeds");
            let options = DecomposeOptions::new().mode(mode).incl_embeds(embeds);
            cache.decompose_resid(options.target(target).apply_ln(ln).pos(pos))?
        }
        "accumulated_resid" => {
            // TransformerLens takes each row's own scale at the unembedding, and the target's elsewhere.
            let scale = if target == Target::Unembed { Scale::Own } else { Scale::Target };
            let options = AccumulateOptions::new().incl_mid(key.has("incl_mid")).target(target).pos(pos);
            cache.accumulated_resid(if ln { options.apply_ln(true).scale(scale) } else { options })?
        }
        "stack_head_results" => {
            let options = HeadOptions::new().incl_remainder(key.has("remainder"));
            cache.stack_head_results(options.target(target).apply_ln(ln).pos(pos))?
        }
        "stack_neuron_results" => {
            let options = NeuronOptions::new().neurons(slice(key.after("neurons_").unwrap()));
            let options = options.incl_remainder(key.has("remainder"));
            cache.stack_neuron_results(options.target(target).apply_ln(ln).pos(pos))?
        }
        "full_resid_decomposition" => {
            let mut options = FullOptions::new().expand_neurons(key.has("expand_1"));
            if key.has("proj") {
                options = options.project(&project());
            }
            cache.get_full_resid_decomposition(options.target(target).apply_ln(ln).pos(pos))?
        }
        "get_neuron_results" => {
            let layer: i64 = key.after("layer_").unwrap().parse().unwrap();
            let options = match key.has("proj1d") {
                true => NeuronResultOptions::new().pos(-1).project(&project().select(1, 0)),
                false => NeuronResultOptions::new().pos(pos).neurons(slice(key.after("neurons_").unwrap())),
            };
            return Ok(Some((cache.get_neuron_results(layer, options)?, None)));
        }
        "stack_activation" => {
            let layers = key.after("layer_").map(|layer| layer.parse().unwrap());
            return Ok(Some((cache.stack_activation(key.parts[1], layers)?, None)));
        }
        "logit_attrs" => return logit_attrs(&key, cache, fixture).map(Some),
        _ => return Ok(None),
    };
    Ok(Some((stack.tensor(), Some(stack.labels()))))
}

/// The columns of `W_U` that the reference projects onto: those of tokens 5 and 17.
fn answer_directions(model: &tch_lens::Transformer) -> Tensor {
    let parameters = model.parameters();
    let find = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor);
    let rows = find("unembed.weight").or_else(|| find("embed.W_E")).unwrap(); // [d_vocab_out, d_model]
    let ids = [5, 17].map(|id| id % model.config().d_vocab_out as i64);
    rows.index_select(0, &Tensor::from_slice(&ids)).tr()
}

fn logit_attrs(key: &Key, cache: &ActivationCache, fixture: &Fixture) -> Result<(Tensor, Option<Vec<String>>)> {
    let tokens = |name: &str| fixture.want(&format!("logit_tokens.{name}"));
    let of = |suffix: &str| -> Answer {
        if key.has("batch_pos") {
            Answer::per_row_and_position(&tokens(&format!("batch_pos{suffix}")))
        } else if key.has("batch") {
            Answer::per_row(Vec::<i64>::try_from(tokens(&format!("batch{suffix}"))).unwrap())
        } else {
            Answer::from(tokens(&format!("int{suffix}")).int64_value(&[0]))
        }
    };
    let answer = if key.has("wrong") { of("").versus(of("_wrong")) } else { of("") };
    let pos = if key.has("pos_-1") { Slice::Index(-1) } else { Slice::All };
    let batch = if key.has("batch_slice_0:1") { (0..1).into() } else { Slice::All };
    let attrs = match key.parts[1] {
        "heads" => cache.logit_attrs(HeadOptions::new().incl_remainder(true).pos(pos), answer)?,
        _ => cache.logit_attrs(&cache.decompose_resid(DecomposeOptions::new().pos(pos).batch(batch))?, answer)?,
    };
    Ok((attrs.tensor(), Some(attrs.labels())))
}

/// Why a figure of TransformerLens' is not ours.
fn skip(family: &str, setting: &str, name: &str, fixture: &Fixture) -> Option<&'static str> {
    let normalised = name.contains(".ln_1") || name.starts_with("logit_attrs");
    let unfolded = setting == "raw"
        || family == "toy_shortformer"
        || !fixture.meta["processing"]["flags_used"].to_string().contains("fold_ln");
    let parts = name.starts_with("stack_head_results")
        || name.starts_with("stack_neuron_results")
        || name.starts_with("get_neuron_results")
        || name.starts_with("full_resid_decomposition")
        || name.starts_with("logit_attrs.heads");
    match family {
        "gpt_neox" | "gptj" | "phi" | "toy_parallel" if name.contains("mlp_input") => {
            Some("TransformerLens counts a layer's attention as input of its parallel MLP")
        }
        _ if name.contains("mlp_input") && fixture.meta["tl_cfg"]["raw"]["attn_only"] == true => {
            Some("an attention-only model has no MLP that could be a target")
        }
        "toy_no_norm" if name.contains("batch_slice") => {
            Some("TransformerLens applies a batch slice together with the norm only, and there is none")
        }
        "gemma2" | "gemma3" | "olmo2" | "olmo3" if parts => {
            Some("TransformerLens leaves out the norm after the sublayer")
        }
        "olmo2" | "olmo3" if normalised => Some(
            "TransformerLens takes the norm after the sublayer for one before it, and leaves the last one's gain out",
        ),
        "mixtral" | "olmoe" | "gpt_oss" if normalised && name.starts_with("logit_attrs") => {
            Some("TransformerLens leaves the norms of mixtures unfolded, and their gain out")
        }
        _ if normalised && unfolded && has_gain(family) => Some("TransformerLens leaves the norm's gain out"),
        _ if name.starts_with("accumulated_bias") || name.starts_with("all_composition_scores") => {
            Some("of the weights, not of a cache")
        }
        _ if name.starts_with("ablate") || name.starts_with("halve") => Some("an intervention, not an analysis"),
        _ => None,
    }
}

fn has_gain(family: &str) -> bool {
    !matches!(family, "toy_no_norm" | "toy_attn_only_1l_lnpre" | "toy_attn_only_2l_lnpre" | "olmo")
}

fn cache_of(model: &HookedTransformer, fixture: &Fixture) -> ActivationCache {
    model.run_with_cache(fixture.want("tokens")).unwrap().1
}

/// The rows of `theirs` that are `labels`: TransformerLens counts short-former's positions as part of the stream.
fn same_rows(theirs: Tensor, their_labels: &[String], labels: &[String]) -> (Tensor, Vec<String>) {
    let kept: Vec<i64> =
        (0..their_labels.len()).filter(|i| labels.contains(&their_labels[*i])).map(|i| i as i64).collect();
    let rows = kept.iter().map(|i| their_labels[*i as usize].clone()).collect();
    (theirs.index_select(0, &Tensor::from_slice(&kept)), rows)
}

fn is_neuron(label: &str) -> bool {
    label.starts_with('L') && label.contains('N')
}

#[test]
fn every_figure_is_transformer_lens_own() {
    let mut tally = Tally::default();
    let mut skipped = std::collections::BTreeMap::<&str, usize>::new();
    let mut families_seen = 0;
    for family in families() {
        let fixture = Fixture::open(&family);
        families_seen += 1;
        for setting in ["raw", "processed"] {
            let load = match setting {
                "raw" => LoadOptions::new().no_processing(),
                _ => processed_like_transformer_lens(&fixture),
            };
            let cache = cache_of(&load.open(&fixture.folder).unwrap(), &fixture);
            for key in fixture.keys(&format!("{setting}.")) {
                let name = &key[setting.len() + 1..];
                if let Some(reason) = skip(&family, setting, name, &fixture) {
                    *skipped.entry(reason).or_default() += 1;
                    continue;
                }
                let what = format!("{family} {key}");
                let evaluated = evaluate(name, &cache, &fixture).unwrap_or_else(|e| panic!("{what}: {e}"));
                let Some((ours, labels)) = evaluated else { continue };
                let mut theirs = fixture.want(&key);
                let mut ours = ours;
                if let Some(mut labels) = labels {
                    let mut their_labels = fixture.labels(&key);
                    if name.starts_with("full_resid_decomposition")
                        && (name.contains("expand_1.mlp_input.ln_1")
                            || family == "olmo" && name.contains("ln_1.pos_-1.proj"))
                    {
                        // TransformerLens normalises these neurons for the layer's attention, not for its MLP; and
                        // what is projected it divides by the scale, but does not centre.
                        let rest: Vec<_> = labels.iter().filter(|label| !is_neuron(label)).cloned().collect();
                        (ours, labels) = same_rows(ours, &labels, &rest);
                        (theirs, their_labels) = same_rows(theirs, &their_labels, &rest);
                    }
                    if family == "toy_shortformer" {
                        (theirs, their_labels) = same_rows(theirs, &their_labels, &labels);
                    }
                    assert_eq!(labels, their_labels, "{what}: labels");
                }
                tally.compare(&what, &ours, &theirs, TOLERANCE);
            }
        }
    }
    for (reason, count) in skipped {
        println!("{count:>5} figures skipped: {reason}");
    }
    println!("{families_seen} families");
    tally.finish("analyses against TransformerLens");
}

#[test]
fn better_figures_are_ours() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        let cache = cache_of(&LoadOptions::new().no_processing().open(&fixture.folder).unwrap(), &fixture);
        let heads = "raw.better.stack_head_results.pos_-1";
        if let Some(theirs) = fixture.get(heads) {
            let ours = cache.stack_head_results(HeadOptions::new().pos(-1)).unwrap();
            assert_eq!(ours.labels(), fixture.labels(heads));
            tally.compare(&format!("{family} {heads}"), &ours.tensor(), &theirs, TOLERANCE);
        }
        let key = "raw.better.logit_attrs.decompose_all.batch_pos";
        let stack = cache.decompose_resid(DecomposeOptions::new()).unwrap();
        let answer = Answer::per_row_and_position(&fixture.want("logit_tokens.batch_pos"));
        let attrs = cache.logit_attrs(&stack, answer).unwrap();
        assert_eq!(attrs.labels(), fixture.labels(key));
        tally.compare(&format!("{family} {key}"), &attrs.tensor(), &fixture.want(key), TOLERANCE);
        let constants = attrs.constants().into_iter().fold(Tensor::from(0.0), |sum, (_, values)| sum + values);
        let bias = fixture.want("raw.better.logit_attrs.bias.batch_pos");
        tally.compare(&format!("{family} constants"), &constants.to_kind(Kind::Float), &bias, TOLERANCE);
    }
    tally.finish("attributions that add up, raw");
}
