//! Circuits of every structure and family: edges by hand, sums of scores, the two ends.

use std::collections::BTreeMap;

use crate::common::models::in_fp64;
use crate::common::pairs::{in_double, pair, STRUCTURES};
use crate::common::{fixtures, Tally};
use rstest::rstest;
use tch::{IndexOp, Kind, Tensor};
use tch_lens::circuits::{
    Ablation, Circuit, CircuitEdge, CircuitFile, CircuitGraph, CircuitNode, CircuitTask, EdgeMethod, HeadInput,
    NodeMethod,
};
use tch_lens::config::NormPosition;
use tch_lens::hook::HookName;
use tch_lens::{
    hook, ActivationCache, BackwardRules, Config, EncoderOutput, HookPoint, HookedEncoderDecoder, HookedTransformer,
    Hooks, LoadOptions, Metric, RunOptions,
};

/// Models between whose stream and heads lies more than a product: latents, with and without one of queries; gates of entries and of heads,
/// in layers of different numbers of heads; a router that chooses heads; differential heads; and norms of the stream itself. Models whose
/// layers multiply the stream, look at keys of earlier ones and have embeddings of their own, and a mask made of values. Encoders, with norms
/// before and in the stream, and distances. Decoders with cross-attention: norms before, in the stream, and around grouped queries.
const UNUSUAL: [&str; 16] = [
    "transformers/minicpm3",
    "transformers/deepseek_v2",
    "transformers/afmoe",
    "transformers/laguna",
    "transformers/jetmoe",
    "transformers/diffllama",
    "transformers/openai-gpt",
    "transformers/gemma4_text",
    "transformers/beam",
    "transformers/doge",
    "transformers/bert",
    "transformers/deberta-v2",
    "transformers/modernbert",
    "encoder_decoders/t5",
    "encoder_decoders/bart",
    "encoder_decoders/t5gemma",
];

/// A model in fp64; a decoder reads its encoder's output of one input, and where edges are ablated that of another.
pub struct Subject {
    pub grouped: HookedTransformer,
    pub other: Option<EncoderOutput>,
}

impl Subject {
    pub fn new(family: &str) -> Self {
        if !family.starts_with("encoder_decoders") {
            return Subject { grouped: in_double(family), other: None };
        }
        let folder = fixtures().join(family);
        Subject::decoder(&LoadOptions::new().no_processing().kind(Kind::Double).open_encoder_decoder(folder).unwrap())
    }

    fn decoder(pair: &HookedEncoderDecoder) -> Self {
        let of = |id: i64| Tensor::from_slice2(&[[5i64, id, 3, 10, 7], [9, 6, id, 5, 2]]);
        let other = Some(pair.encode(of(8)).unwrap());
        Subject { grouped: pair.decoder_of(of(4)).unwrap(), other }
    }

    pub fn ablation(&self, corrupted: &Tensor) -> Ablation {
        let ablation = Ablation::counterfactual(corrupted);
        match &self.other {
            Some(output) => ablation.encoder_output(output.clone()),
            None => ablation,
        }
    }

    /// The model that reads what is ablated.
    pub fn ablated(&self, model: &HookedTransformer) -> HookedTransformer {
        match &self.other {
            Some(output) => model.with_encoder_output(output.clone()).unwrap(),
            None => model.clone(),
        }
    }
}

pub fn has(config: &Config, point: HookPoint) -> bool {
    point.resolve(config).is_ok()
}

/// The stream that all embeddings make, as one node writes it.
fn embedding(config: &Config) -> HookPoint {
    if has(config, hook::full_embed()) {
        hook::full_embed()
    } else {
        hook::embed()
    }
}

/// What the nodes of a model compute, layer by layer.
fn computed(config: &Config) -> Vec<HookPoint> {
    let of_layer = |l| [hook::z(l), hook::cross_z(l), hook::mlp_out(l), hook::ple_out(l)];
    (0..config.n_layers).flat_map(of_layer).filter(|point| has(config, *point)).collect()
}

fn structures() -> impl Iterator<Item = &'static str> {
    STRUCTURES.into_iter().chain(UNUSUAL)
}

/// A model whose heads stand apart is the same function, also once it was saved.
#[test]
fn ungrouped_models_compute_the_same() {
    let mut tally = Tally::default();
    for family in structures() {
        let subject = Subject::new(family);
        let model = subject.grouped.ungrouped().unwrap();
        let (clean, ..) = pair();
        let expected = subject.grouped.forward(&clean).unwrap();
        let (logits, cache) = model.run_with_cache(&clean).unwrap();
        tally.compare(family, &logits, &expected, 1e-12);
        for layer in (0..model.config().n_layers).filter(|layer| has(model.config(), hook::k(*layer))) {
            let heads = cache[hook::q(layer)].size()[2];
            assert_eq!([hook::k(layer), hook::v(layer)].map(|point| cache[point].size()[2]), [heads; 2], "{family}");
        }
        if subject.other.is_some() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        let again = LoadOptions::new().kind(Kind::Double).open(folder.path()).unwrap();
        assert_eq!(again.config(), model.config(), "{family}");
        tally.compare(&format!("{family}, saved"), &again.forward(&clean).unwrap(), &logits, 1e-12);
    }
    tally.finish("ungrouped models");

    // A router's heads are those of all experts; each token has gates for as many as it goes to.
    let routed = in_double("transformers/jetmoe");
    let experts = routed.config().attention.experts.unwrap();
    let model = routed.ungrouped().unwrap();
    let (_, cache) = model.run_with_cache(&pair().0).unwrap();
    let gates = &cache[hook::head_gate(0)]; // [batch, pos, head, 1]
    let heads = routed.config().n_key_value_heads;
    assert_eq!(gates.size()[2], (experts.num_experts * heads) as i64);
    let open = gates.not_equal(0.0).sum_dim_intlist([2i64].as_slice(), false, Kind::Int64);
    let expected = Tensor::full_like(&open, (experts.experts_per_token * heads) as i64);
    assert_eq!(open, expected);
}

/// The heads of a node: as `W_O` reads what they mixed, and as they read the stream.
fn heads_of(model: &HookedTransformer, layer: usize, head: usize) -> (Vec<i64>, Vec<i64>) {
    let head = head as i64;
    match model.config().attention.differential {
        false => (vec![head], vec![head]),
        true => {
            let half = model.config().heads(layer).query as i64 / 2;
            (vec![2 * head, 2 * head + 1], vec![head, head + half])
        }
    }
}

/// Where a receiver reads.
struct Read {
    /// The point that is changed.
    point: HookPoint,
    /// Its heads there; none where it is one node.
    heads: Vec<i64>,
    /// The point that shows what it reads.
    stream: HookPoint,
}

fn input_of(edge: CircuitEdge, model: &HookedTransformer) -> Read {
    let config = model.config();
    let in_stream = config.norm_position() == NormPosition::InStream;
    let one = |point: HookPoint| Read { point, heads: vec![], stream: point };
    match edge.to {
        CircuitNode::Head { layer, head } => {
            let point = match edge.input {
                Some(HeadInput::Q) => hook::q_input(layer),
                Some(HeadInput::K) => hook::k_input(layer),
                _ => hook::v_input(layer),
            };
            Read { point, heads: heads_of(model, layer, head).1, stream: hook::resid_pre(layer) }
        }
        CircuitNode::CrossHead { layer, head } => {
            let point = match edge.input {
                Some(HeadInput::Q) => hook::cross_q(layer),
                Some(HeadInput::K) => hook::cross_k(layer),
                _ => hook::cross_v(layer),
            };
            Read { heads: vec![head as i64], ..one(point) }
        }
        CircuitNode::LayerEmbedding { layer } if edge.from == CircuitNode::LayerInputs => one(hook::ple_embed(layer)),
        CircuitNode::LayerEmbedding { layer } => one(hook::ple_in(layer)),
        CircuitNode::Mlp { layer } if in_stream => one(hook::mlp_hook_in(layer)),
        CircuitNode::Mlp { layer } => one(hook::mlp_in(layer)),
        _ if in_stream => one(hook::normalized_resid_post(config.n_layers - 1)),
        _ => one(hook::resid_post(config.n_layers - 1)),
    }
}

/// A task's two runs.
pub struct ByHand<'t> {
    model: &'t HookedTransformer,
    metric: &'t Metric<'t>,
    clean: &'t Tensor,
    before: ActivationCache,
    after: ActivationCache,
}

impl<'t> ByHand<'t> {
    pub fn new(
        subject: &Subject,
        model: &'t HookedTransformer,
        metric: &'t Metric<'t>,
        clean: &'t Tensor,
        corrupted: &Tensor,
    ) -> Self {
        let config = model.config();
        let others = |l| [hook::attn_out(l), hook::ple_embed(l), hook::cross_k(l), hook::cross_v(l)];
        let others = (0..config.n_layers).flat_map(others).filter(|point| has(config, *point));
        let points: Vec<HookPoint> = computed(config).into_iter().chain(others).chain([embedding(config)]).collect();
        let before = model.run_with_cache_of(clean, points.clone()).unwrap().1;
        let after = subject.ablated(model).run_with_cache_of(corrupted, points).unwrap().1;
        ByHand { model, metric, clean, before, after }
    }

    fn between(&self, point: HookPoint, amount: f64) -> Tensor {
        &self.before[point] + (&self.after[point] - &self.before[point]) * amount
    }

    /// The metric where one edge carries `amount` of the way to what it carries ablated: with all other nodes as they are, what reaches the
    /// receiver's stream; then a run in which the receiver alone reads that.
    pub fn moved(&self, edge: CircuitEdge, amount: f64) -> f64 {
        let Read { point, heads, stream } = input_of(edge, self.model);
        let told = match edge.from {
            CircuitNode::Encoder | CircuitNode::LayerInputs => self.between(point, amount),
            _ => self.told(edge.from, stream, amount),
        };
        let hooks = Hooks::new().edit(point, |x, _| match heads.is_empty() {
            true => x.copy_(&told),
            false => heads.iter().for_each(|head| match told.dim() {
                4 => x.select(2, *head).copy_(&told.select(2, *head)),
                _ => x.select(2, *head).copy_(&told),
            }),
        });
        let output = self.model.run(self.clean, RunOptions::new().hooks(hooks)).unwrap();
        self.metric.scalar(output.logits().unwrap(), &output.cache).unwrap().double_value(&[])
    }

    /// What reaches a point where one node writes something else, and all others write what they do.
    fn told(&self, from: CircuitNode, stream: HookPoint, amount: f64) -> Tensor {
        let hooks = Hooks::new().freeze(computed(self.model.config()), &self.before);
        let head = |hooks: Hooks<'t>, point: HookPoint, heads: Vec<i64>| {
            let z = self.between(point, amount);
            hooks.edit(point, move |x, _| heads.iter().for_each(|head| x.select(2, *head).copy_(&z.select(2, *head))))
        };
        let whole = |hooks: Hooks<'t>, point: HookPoint| {
            let out = self.between(point, amount);
            hooks.replace(point, move |_, _| out.shallow_clone())
        };
        let hooks = match from {
            CircuitNode::Head { layer, head: of } => head(hooks, hook::z(layer), heads_of(self.model, layer, of).0),
            CircuitNode::CrossHead { layer, head: of } => head(hooks, hook::cross_z(layer), vec![of as i64]),
            CircuitNode::Mlp { layer } => whole(hooks, hook::mlp_out(layer)),
            CircuitNode::LayerEmbedding { layer } => whole(hooks, hook::ple_out(layer)),
            _ => whole(hooks, embedding(self.model.config())),
        };
        let told = self.model.run(self.clean, RunOptions::new().hooks(hooks).cache(stream)).unwrap().cache;
        told[stream].shallow_clone()
    }
}

/// An ablated edge is a run in which its receiver alone reads something else, and its score by gradients is the slope there.
#[rstest]
fn edges_are_moved_by_hand(#[values(0, 1, 2)] stripe: usize) {
    let mut tally = Tally::default();
    for family in structures().skip(stripe).step_by(3) {
        let subject = Subject::new(family);
        let model = subject.grouped.ungrouped().unwrap();
        let (clean, corrupted, metric) = pair();
        let task = CircuitTask::new(&subject.grouped, &clean, subject.ablation(&corrupted), &metric).unwrap();
        let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
        let by_hand = ByHand::new(&subject, &model, &metric, &clean, &corrupted);
        let edges: Vec<CircuitEdge> = task.graph().edges().collect();
        // Some of all, and some of what few models have.
        let rare = |edge: &&CircuitEdge| {
            matches!(edge.from, CircuitNode::Encoder | CircuitNode::LayerInputs)
                || matches!(edge.to, CircuitNode::CrossHead { .. } | CircuitNode::LayerEmbedding { .. })
        };
        let rare: Vec<CircuitEdge> = edges.iter().filter(rare).copied().collect();
        let some = |edges: Vec<CircuitEdge>| edges.clone().into_iter().step_by(edges.len() / 20 + 1);
        for edge in some(edges).chain(some(rare)) {
            let circuit = Circuit::full(task.graph().clone()).without([edge]).unwrap();
            let ours = Tensor::from(task.metric_of(&circuit).unwrap());
            tally.compare(&format!("{family}, {edge}"), &ours, &Tensor::from(by_hand.moved(edge, 1.0)), 1e-9);
            let slope = (by_hand.moved(edge, 1e-4) - by_hand.moved(edge, -1e-4)) / 2e-4;
            let ours = Tensor::from(scores.get(edge).unwrap() / (1.0 + slope.abs()));
            let slope = Tensor::from(slope / (1.0 + slope.abs()));
            tally.compare(&format!("{family}, slope of {edge}"), &ours, &slope, 1e-6);
        }
    }
    tally.finish("edges by hand");
}

/// Every edge by itself: the gradient at what the receiver reads, where heads read apart, times the change that the sender makes to the
/// stream.
#[test]
fn edge_scores_are_gradients_times_differences() {
    let mut tally = Tally::default();
    for family in structures() {
        let subject = Subject::new(family);
        let model = subject.grouped.ungrouped().unwrap();
        let config = model.config();
        // There edges pass through norms and factors of the stream: `edges_are_moved_by_hand`.
        if config.norm_position() == NormPosition::InStream || config.stream != Default::default() {
            continue;
        }
        let (clean, corrupted, metric) = pair();
        for rules in [BackwardRules::new(), BackwardRules::relp()] {
            let task = CircuitTask::new(&subject.grouped, &clean, subject.ablation(&corrupted), &metric)
                .unwrap()
                .backward_rules(rules);
            let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
            let mut names: Vec<HookPoint> = vec![hook::resid_post(-1)];
            for layer in 0..config.n_layers {
                names.extend([hook::q_input(layer), hook::k_input(layer), hook::v_input(layer), hook::mlp_in(layer)]);
                if has(config, hook::cross_q(layer)) {
                    names.extend([hook::cross_q(layer), hook::cross_k(layer), hook::cross_v(layer)]);
                }
            }
            let run = RunOptions::new().cache(names).backward_rules(rules);
            let gradients =
                model.run_with_grad(&clean, run, |run| metric.scalar(run.logits()?, &run.cache)).unwrap().gradients;
            let by_hand = ByHand::new(&subject, &model, &metric, &clean, &corrupted);
            let (before, after) = (&by_hand.before, &by_hand.after);
            let difference = |point: HookPoint| &after[point] - &before[point];
            let mut changes = BTreeMap::new();
            for node in task.graph().senders() {
                let of_heads = |heads: Vec<i64>, point: HookPoint, written: HookPoint| {
                    let z = difference(point);
                    let of_head = z.zeros_like();
                    for head in heads {
                        of_head.i((.., .., head)).copy_(&z.i((.., .., head)));
                    }
                    let run = RunOptions::new().backward_rules(rules);
                    let jacobian = model.jacobian(&clean, run, written, point).unwrap();
                    jacobian.jvp(&of_head).unwrap()
                };
                let change = match node {
                    CircuitNode::Head { layer, head } => {
                        of_heads(heads_of(&model, layer, head).0, hook::z(layer), hook::attn_out(layer))
                    }
                    CircuitNode::CrossHead { layer, head } => {
                        of_heads(vec![head as i64], hook::cross_z(layer), hook::cross_attn_out(layer))
                    }
                    CircuitNode::Mlp { layer } => difference(hook::mlp_out(layer)),
                    CircuitNode::Encoder => continue,
                    _ => difference(embedding(config)),
                };
                changes.insert(node, change);
            }
            for edge in task.graph().edges() {
                let Read { point, heads, .. } = input_of(edge, &model);
                // What queries of cross-attention read has no point for each head: `edges_are_moved_by_hand`.
                if matches!((edge.to, edge.input), (CircuitNode::CrossHead { .. }, Some(HeadInput::Q))) {
                    continue;
                }
                let of = |x: &Tensor| match heads.is_empty() {
                    true => x.shallow_clone(),
                    false => heads.iter().map(|head| x.select(2, *head)).sum(),
                };
                let change = match edge.from {
                    CircuitNode::Encoder => of(&difference(point)),
                    from => changes[&from].shallow_clone(),
                };
                let expected = (of(&gradients[point]) * change).sum(Kind::Double);
                let scale = 1.0 + expected.abs().double_value(&[]);
                let ours = Tensor::from(scores.get(edge).unwrap());
                tally.compare(&format!("{family}, {edge}"), &(ours / scale), &(expected / scale), 1e-9);
            }
        }
    }
    assert!(tally.count > 1000, "{}", tally.count);
    tally.finish("edges");
}

/// Edge scores sum to node scores; the model without an ablated edge is the clean run, and with all it is the counterfactual one.
#[test]
fn sums_and_ends_hold_for_every_family() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64() {
        let (clean, corrupted, metric) = pair();
        let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
        let number = |x: f64| Tensor::from(x);
        let value = |tokens: &Tensor| {
            let output = model.run(tokens, RunOptions::new()).unwrap();
            metric.scalar(output.logits().unwrap(), &output.cache).unwrap()
        };
        let full = task.metric_of(&Circuit::full(task.graph().clone())).unwrap();
        tally.compare(&format!("{what}, all edges"), &number(full), &value(&clean), 1e-9);
        tally.compare(&format!("{what}, clean"), &number(task.clean_metric()), &value(&clean), 1e-9);
        tally.compare(&format!("{what}, no edges"), &number(task.ablated_metric().unwrap()), &value(&corrupted), 1e-9);

        for rules in [BackwardRules::new(), BackwardRules::relp()] {
            let ablation = Ablation::counterfactual(&corrupted);
            let task = CircuitTask::new(&model, &clean, ablation, &metric).unwrap().backward_rules(rules);
            for (edges, nodes) in [
                (EdgeMethod::Gradient, NodeMethod::Gradient),
                (EdgeMethod::IntegratedInputs { steps: 2 }, NodeMethod::IntegratedInputs { steps: 2 }),
            ] {
                let sums = Tensor::from_slice(&task.edge_scores(edges).unwrap().by_sender());
                let nodes = task.node_scores(nodes).unwrap();
                let scale = 1.0 + sums.abs().max().double_value(&[]);
                let nodes = Tensor::from_slice(nodes.scores());
                tally.compare(&format!("{what}, {edges:?}"), &(sums / scale), &(nodes / scale), 1e-9);
            }
        }
    }
    tally.finish("sums of edges");
}

/// Families in which a network chooses the keys that heads see.
const WITHOUT_CIRCUITS: [&str; 2] = ["deepseek_v32", "glm_moe_dsa"];

/// The same, and gradients through cuts at every point, for every family of transformers that loads.
#[test]
fn every_family_of_transformers_has_gradients_and_circuits() {
    let folders = std::fs::read_dir(fixtures().join("transformers")).unwrap();
    let mut folders: Vec<std::path::PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let (mut tally, mut loaded) = (Tally::default(), 0);
    for folder in folders.iter().filter(|folder| folder.join("config.json").is_file()) {
        let load = LoadOptions::new().no_processing().kind(Kind::Double);
        let Ok(model) = load.open(folder) else { continue }; // refused: `transformers_families` says why
        loaded += 1;
        let what = folder.file_name().unwrap().to_str().unwrap();
        let (clean, corrupted, metric) = pair();
        let scalar = |output: &tch_lens::RunOutput| metric.scalar(output.logits()?, &output.cache);
        let plain = model.run_with_grad(&clean, RunOptions::new(), scalar).unwrap();
        let hooks = Hooks::new().replace_gradient(plain.gradients.keys().collect::<Vec<_>>(), |g, _| g * 1.0);
        let cut = model.run_with_grad(&clean, RunOptions::new().hooks(hooks), scalar).unwrap();
        for (point, gradient) in plain.gradients.items().filter(|(_, gradient)| gradient.numel() > 0) {
            let scale = 1.0 + gradient.abs().max().double_value(&[]);
            tally.compare(&format!("{what}, {point}"), &(&cut.gradients[point] / scale), &(gradient / scale), 1e-9);
        }
        // The slope in a direction of the embeddings.
        let embed = &plain.run.cache["hook_embed"];
        let direction = embed.sin();
        let moved = |by: f64| {
            let hooks = Hooks::new().replace("hook_embed", |x, _| x + &direction * by);
            let output = model.run(&clean, RunOptions::new().hooks(hooks)).unwrap();
            scalar(&output).unwrap().double_value(&[])
        };
        let slope = (&plain.gradients["hook_embed"] * &direction).sum(Kind::Double).double_value(&[]);
        let found = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        let scale = 1.0 + slope.abs();
        tally.compare(&format!("{what}, slope"), &Tensor::from(slope / scale), &Tensor::from(found / scale), 1e-6);

        let other = model.run(&corrupted, RunOptions::new()).unwrap();
        let other = scalar(&other).unwrap().double_value(&[]);
        let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric);
        if WITHOUT_CIRCUITS.iter().any(|start| what.starts_with(start)) {
            assert!(matches!(task, Err(tch_lens::Error::Unsupported { .. })), "{what}");
            continue;
        }
        ends_and_sums(&mut tally, what, task.unwrap(), plain.value, other);
    }
    println!("{loaded} families");
    assert!(loaded >= 100, "{loaded}");
    tally.finish("families of transformers");
}

/// All edges are the model, no edge is the other run, information flows in shares, and scores of edges sum to those of nodes.
fn ends_and_sums(tally: &mut Tally, what: &str, mut task: CircuitTask, clean: f64, other: f64) {
    let full = task.metric_of(&Circuit::full(task.graph().clone())).unwrap();
    for (end, ours, theirs) in [("all edges", full, clean), ("no edges", task.ablated_metric().unwrap(), other)] {
        tally.compare(&format!("{what}, {end}"), &Tensor::from(ours), &Tensor::from(theirs), 1e-9);
    }
    let shares = task.edge_scores(EdgeMethod::InformationFlow).unwrap().tensor().unwrap();
    let sums = shares.sum_dim_intlist([0i64].as_slice(), false, None); // [receiver]
    assert!(shares.min().double_value(&[]) >= 0.0 && sums.max().double_value(&[]) <= 1.0 + 1e-9, "{what}: {sums}");
    // In one step, the gradient is that of a run whose inputs are ablated: the counterfactual one.
    let scores = |method: EdgeMethod| task.edge_scores(method).unwrap().tensor().unwrap();
    let at_counterfactual = scores(EdgeMethod::CleanAndCounterfactual) * 2.0 - scores(EdgeMethod::Gradient);
    let scale = 1.0 + at_counterfactual.abs().max().double_value(&[]);
    let ours = scores(EdgeMethod::IntegratedInputs { steps: 1 });
    tally.compare(&format!("{what}, one step"), &(ours / scale), &(at_counterfactual / scale), 1e-9);
    for rules in [BackwardRules::new(), BackwardRules::relp()] {
        task = task.backward_rules(rules);
        let steps = 2;
        for (of_edges, of_nodes) in [
            (EdgeMethod::Gradient, NodeMethod::Gradient),
            (EdgeMethod::IntegratedInputs { steps }, NodeMethod::IntegratedInputs { steps }),
        ] {
            let edges = Tensor::from_slice(&task.edge_scores(of_edges).unwrap().by_sender());
            let nodes = Tensor::from_slice(task.node_scores(of_nodes).unwrap().scores());
            let scale = 1.0 + edges.abs().max().double_value(&[]);
            tally.compare(&format!("{what}, sums, {of_edges:?}"), &(edges / scale), &(nodes / scale), 1e-9);
        }
    }
}

/// The decoders of all encoder-decoders, with the encoder's output as a node: both ends, and sums.
#[test]
fn every_decoder_of_an_encoder_has_circuits() {
    let mut tally = Tally::default();
    let mut families: Vec<_> = std::fs::read_dir(fixtures().join("encoder_decoders")).unwrap().collect();
    families.sort_by_key(|entry| entry.as_ref().unwrap().path());
    for entry in families {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let subject = Subject::new(&format!("encoder_decoders/{name}"));
        let (clean, corrupted, metric) = pair();
        let value = |model: &HookedTransformer, tokens: &Tensor| {
            let output = model.run(tokens, RunOptions::new()).unwrap();
            metric.scalar(output.logits().unwrap(), &output.cache).unwrap().double_value(&[])
        };
        let ends = (value(&subject.grouped, &clean), value(&subject.ablated(&subject.grouped), &corrupted));
        let task = CircuitTask::new(&subject.grouped, &clean, subject.ablation(&corrupted), &metric).unwrap();
        assert!(task.graph().senders().any(|node| node == CircuitNode::Encoder));
        ends_and_sums(&mut tally, &name, task, ends.0, ends.1);
    }
    tally.finish("decoders of encoders");
}

/// Keys and values that a later layer looks at, too, are read where either head is; growing circuits meet each of their edges once, and files
/// lead back to the graph.
#[test]
fn shared_keys_are_read_by_the_heads_of_both_layers() {
    let model = in_double("transformers/gemma4_text");
    let (clean, corrupted, metric) = pair();
    let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
    let graph = task.graph();
    let full = Circuit::full(graph.clone());
    assert_eq!(full.pruned(), full);
    let edge = |name: &str| name.parse::<CircuitEdge>().unwrap();
    assert!(graph.edge_index(edge("input->a2.h0<q>")).is_ok() && graph.edge_index(edge("input->a2.h0<k>")).is_err());
    let unread =
        |node: &str| full.without(graph.edges().filter(|edge| edge.from.to_string() == node)).unwrap().pruned();
    // Nothing reads head 0 of layer 1, but head 0 of layer 2 looks at its keys and values.
    let circuit = unread("a1.h0");
    assert!(!circuit.contains(edge("input->a1.h0<q>")) && circuit.contains(edge("input->a1.h0<k>")));
    assert!(!unread("a0.h0").contains(edge("input->a0.h0<k>")), "no other layer looks at these");
    // Without both, nothing needs them, and the metric is the same.
    let neither = full
        .without(graph.edges().filter(|edge| ["a1.h0", "a2.h0"].contains(&edge.from.to_string().as_str())))
        .unwrap();
    assert!(!neither.pruned().contains(edge("input->a1.h0<k>")));
    let value = |circuit: &Circuit| Tensor::from(task.metric_of(circuit).unwrap());
    let mut tally = Tally::default();
    tally.compare("edges that nothing reads", &value(&neither.pruned()), &value(&neither), 1e-12);
    tally.compare("queries that nothing reads", &value(&circuit), &value(&unread_only(&full, graph, "a1.h0")), 1e-12);
    tally.finish("shared keys");

    let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
    assert_eq!(scores.greedy(graph.n_edges()).unwrap(), full);
    let nodes = task.node_scores(NodeMethod::Gradient).unwrap();
    assert_eq!(nodes.top_n(graph.n_senders()).unwrap(), full);
    let file = CircuitFile { edge_scores: Some(scores), ..CircuitFile::new(circuit) };
    assert_eq!(CircuitFile::from_json(&file.to_json().unwrap()).unwrap(), file);
}

/// All edges but those from one node.
fn unread_only(full: &Circuit, graph: &CircuitGraph, node: &str) -> Circuit {
    full.without(graph.edges().filter(|edge| edge.from.to_string() == node)).unwrap()
}

/// Nodes that do not write to the stream are kept whole, and files have them.
#[test]
fn an_encoder_is_a_node_without_dimensions() {
    let subject = Subject::new("encoder_decoders/t5");
    let (clean, corrupted, metric) = pair();
    let task = CircuitTask::new(&subject.grouped, &clean, subject.ablation(&corrupted), &metric).unwrap();
    let full = Circuit::full(task.graph().clone());
    assert!(full.dimensions(CircuitNode::Encoder).unwrap().is_empty());
    let error = full.with_dimensions(CircuitNode::Encoder, [0]).unwrap_err().to_string();
    assert!(error.contains("does not write to the stream"), "{error}");
    let nodes = task.node_scores(NodeMethod::Gradient).unwrap();
    let some = nodes.top_n_dimensions(40).unwrap();
    assert!(some.contains_node(CircuitNode::Encoder) && some.n_dimensions() <= 40 + subject.grouped.config().d_model);
    let file = CircuitFile { edge_scores: None, ..CircuitFile::new(some) };
    let again = CircuitFile::from_json(&file.to_json().unwrap()).unwrap();
    assert_eq!(again.circuit, file.circuit);
    let other = Ablation::zero().encoder_output(subject.other.clone().unwrap());
    assert!(CircuitTask::new(&subject.grouped, &clean, other, &metric).is_err());
    let short = subject.other.as_ref().unwrap().stream().narrow(1, 0, 3);
    let short = Ablation::counterfactual(&corrupted).encoder_output(EncoderOutput::new(short, None).unwrap());
    let error = CircuitTask::new(&subject.grouped, &clean, short, &metric).unwrap_err().to_string();
    assert!(error.contains("5 positions"), "{error}");
    // Means of what the encoder gives, over its positions or at each.
    for ablation in [Ablation::mean(&corrupted), Ablation::mean_per_position(&corrupted), Ablation::zero()] {
        let task = CircuitTask::new(&subject.grouped, &clean, ablation, &metric).unwrap();
        let all = task.metric_of(&Circuit::full(task.graph().clone())).unwrap();
        assert!((all - task.clean_metric()).abs() < 1e-9 && task.ablated_metric().unwrap().is_finite());
    }
}
