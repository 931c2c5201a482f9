//! Attribution graphs: circuit-tracer's on the same transcoders, and sums that hold for every family.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tch_lens::analysis::{HeadOptions, NeuronOptions, NeuronResultOptions};
use tch_lens::config::{NormPosition, Normalization};
use tch_lens::graphs::{
    AttributionGraph, AttributionGraphOptions, AttributionNode, FeatureIntervention, Freeze, GraphFile, PruneOptions,
    Supernode,
};
use tch_lens::sae::{Dictionary, DictionaryConfig, DictionarySet, DictionaryWeights, FeatureActivation};
use tch_lens::{
    hook, ActivationCache, Config, DictionaryOptions, EncoderOutput, HookFilter, HookedTransformer, Hooks, LoadOptions,
    Patch, RunOptions,
};

use crate::common::{fixtures, models, read, repository, Fixture, Tally};

/// circuit-tracer's tolerance, relative.
const RELATIVE: f64 = 5e-4;

/// A graph of circuit-tracer's, with what it was made of.
struct Reference {
    tensors: BTreeMap<String, Tensor>,
    facts: Value,
    model: HookedTransformer,
    transcoders: DictionarySet,
}

fn folder(case: &str) -> PathBuf {
    fixtures().join("circuit_tracer").join(case)
}

impl Reference {
    fn open(case: &str, graph: &str) -> Self {
        let facts = std::fs::read_to_string(folder(case).join(format!("{graph}.json"))).unwrap();
        let model = match case.strip_prefix("toy") {
            Some(_) => repository().join("models/toy"),
            None => Fixture::folder("llama_gqa_tied"),
        };
        Reference {
            tensors: read(&folder(case).join(format!("{graph}.safetensors"))),
            facts: serde_json::from_str(&facts).unwrap(),
            model: LoadOptions::new().no_processing().kind(Kind::Float).open(model).unwrap(),
            transcoders: DictionaryOptions::new().open_set(folder(case)).unwrap(),
        }
    }

    fn get(&self, name: &str) -> Tensor {
        self.tensors[name].shallow_clone()
    }

    fn ids(&self, name: &str) -> Vec<i64> {
        Vec::<i64>::try_from(self.get(name)).unwrap()
    }

    fn number(&self, name: &str) -> f64 {
        self.facts[name].as_f64().unwrap()
    }

    fn options(&self) -> AttributionGraphOptions {
        AttributionGraphOptions::new().transcoders(self.transcoders.clone()).max_logits(5)
    }

    fn graph(&self, options: AttributionGraphOptions) -> AttributionGraph {
        self.model.attribution_graph(Tensor::from_slice(&self.ids("tokens")).unsqueeze(0), options).unwrap()
    }

    /// The targets' rows of the adjacency: features, then logits.
    fn rows(&self) -> Tensor {
        Tensor::cat(&[self.get("adjacency.feature_rows"), self.get("adjacency.logit_rows")], 0)
    }
}

/// The rows of features and logits of a graph's adjacency.
fn rows(graph: &AttributionGraph) -> Tensor {
    let (features, n) = (graph.n_selected() as i64, graph.nodes().len() as i64);
    let logits = graph.logits().len() as i64;
    let all = graph.adjacency().unwrap();
    Tensor::cat(&[all.narrow(0, 0, features), all.narrow(0, n - logits, logits)], 0)
}

/// Differences relative to the size of the numbers.
fn relative(tally: &mut Tally, what: &str, ours: &Tensor, theirs: &Tensor) {
    let size = theirs.abs().max().double_value(&[]).max(1e-12);
    tally.compare(what, &(ours.to_kind(Kind::Double) / size), &(theirs.to_kind(Kind::Double) / size), RELATIVE);
}

const CASES: &[(&str, &str)] = &[
    ("toy_plt", "graph"),
    ("toy_plt", "graph_max30"),
    ("toy_plt", "graph_targets"),
    ("toy_clt", "graph"),
    ("toy_skip_jumprelu", "graph"),
    ("llama_plt", "graph"),
];

fn options_of(reference: &Reference, graph: &str) -> AttributionGraphOptions {
    match graph {
        "graph_max30" => reference.options().max_nodes(30).batch_size(8).update_interval(1),
        "graph_targets" => reference.options().logits(reference.ids("logit_token_ids")),
        _ => reference.options(),
    }
}

#[test]
fn graphs_are_those_of_circuit_tracer() {
    let mut tally = Tally::default();
    for (case, name) in CASES {
        let reference = Reference::open(case, name);
        let graph = reference.graph(options_of(&reference, name));
        let what = |of: &str| format!("{case} {name}: {of}");

        let active = reference.get("active_features");
        let selected = active.index_select(0, &reference.get("selected_features"));
        let features: Vec<i64> = graph.nodes()[..graph.n_selected()]
            .iter()
            .flat_map(|node| match node {
                AttributionNode::Feature { layer, pos, feature } => [*layer as i64, *pos as i64, *feature as i64],
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(features, Vec::<i64>::try_from(selected.reshape([-1])).unwrap(), "{case} {name}");
        assert_eq!(graph.n_active() as i64, active.size()[0]);
        let ids: Vec<i64> = graph.logits().iter().map(|logit| logit.id).collect();
        assert_eq!(ids, reference.ids("logit_token_ids"));
        let probabilities: Vec<f64> = graph.logits().iter().map(|logit| logit.probability).collect();
        relative(
            &mut tally,
            &what("probabilities"),
            &Tensor::from_slice(&probabilities),
            &reference.get("logit_probabilities"),
        );
        let activations: Vec<f64> = (0..graph.n_selected()).map(|node| graph.activation(node).unwrap()).collect();
        let values = reference.get("activation_values").index_select(0, &reference.get("selected_features"));
        relative(&mut tally, &what("activations"), &Tensor::from_slice(&activations), &values);
        relative(&mut tally, &what("adjacency"), &rows(&graph), &reference.rows());
        relative(
            &mut tally,
            &what("influence"),
            &Tensor::from_slice(&graph.influence().unwrap()),
            &reference.get("node_influence"),
        );

        for [nodes, edges] in [["0.8", "0.98"], ["0.5", "0.9"]] {
            let options = PruneOptions::new().nodes(nodes.parse().unwrap()).edges(edges.parse().unwrap());
            let pruned = graph.prune(options).unwrap();
            let key = |of: &str| format!("prune.{nodes}.{edges}.{of}");
            let kept: Vec<bool> = (0..graph.nodes().len()).map(|node| pruned.contains(node)).collect();
            assert_eq!(kept, Vec::<bool>::try_from(reference.get(&key("node_mask"))).unwrap(), "{case} {name} {nodes}");
            let found: BTreeSet<[i64; 2]> =
                pruned.edges().iter().map(|edge| [edge.target as i64, edge.source as i64]).collect();
            let expected =
                Vec::<i64>::try_from(reference.get(&key("edges")).to_kind(Kind::Int64).reshape([-1])).unwrap();
            let expected: BTreeSet<[i64; 2]> = expected.chunks(2).map(|edge| [edge[0], edge[1]]).collect();
            assert_eq!(found, expected, "{case} {name} {nodes}");
            let cumulative = Tensor::from_slice(pruned.cumulative_influence());
            relative(&mut tally, &what(&key("cumulative")), &cumulative, &reference.get(&key("cumulative_scores")));
        }
        let scores = graph.scores().unwrap();
        for (score, of) in [(scores.replacement, "replacement_score"), (scores.completeness, "completeness_score")] {
            relative(&mut tally, &what(of), &Tensor::from(score), &Tensor::from(reference.number(of)));
        }
        let residual = graph.residual().unwrap();
        assert!(residual < 1e-5, "{case} {name}: the sums fail by {residual:.1e}");
        if reference.tensors.contains_key("completeness.bias") {
            let targets: Vec<usize> = (0..graph.nodes().len()).filter(|node| graph.value(*node).is_some()).collect();
            let of =
                |f: &dyn Fn(usize) -> f64| Tensor::from_slice(&targets.iter().map(|node| f(*node)).collect::<Vec<_>>());
            let constants = of(&|node| graph.constant(node).unwrap());
            let values = of(&|node| graph.value(node).unwrap());
            relative(&mut tally, &what("constants"), &constants, &reference.get("completeness.bias"));
            relative(&mut tally, &what("values"), &values, &reference.get("completeness.pre_activation"));
        }
    }
    tally.finish("graphs of circuit-tracer");
}

/// Edges that lie on disk are the same edges.
#[test]
fn a_budget_changes_no_edge() {
    let reference = Reference::open("toy_skip_jumprelu", "graph");
    let options = || reference.options().max_nodes(40).batch_size(8);
    let tokens = Tensor::from_slice(&reference.ids("tokens")).unsqueeze(0);
    let estimate = reference.model.estimate_graph(&tokens, options()).unwrap();
    let (all, few) = (reference.graph(options()), reference.graph(options().memory(estimate.dense_bytes / 20)));
    assert_eq!(all.nodes(), few.nodes());
    assert_eq!(rows(&all), rows(&few));
    let ((in_memory, on_disk), (all_bytes, nothing)) = (few.edge_bytes(), all.edge_bytes());
    assert_eq!((in_memory + on_disk, nothing), (all_bytes, 0));
    assert!(in_memory <= estimate.dense_bytes / 20 && on_disk > 0, "{in_memory} {on_disk}");
    let whole = reference.model.estimate_graph(&tokens, reference.options()).unwrap();
    assert_eq!(whole.edge_bytes, reference.graph(reference.options()).edge_bytes().0);
    println!("{estimate:?}\n{whole:?}");
}

/// Without transcoders, neurons are the units: of each layer's MLP, of shared experts and experts. With heads as nodes or without.
#[test]
fn inputs_of_every_target_add_up_in_every_family() {
    let (mut worst, mut worst_at, mut count) = (0.0, String::new(), 0);
    let folder = fixtures().join("transformers");
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    // What is refused, and what has no decoder, is tested elsewhere.
    let mut all: Vec<(String, HookedTransformer)> = models::in_fp64();
    all.extend(multiplied());
    let (own, mut opened) = (all.len(), 0);
    for name in names {
        let folder = Fixture::folder(&format!("transformers/{name}"));
        if let Ok(model) = LoadOptions::new().no_processing().kind(Kind::Double).open(folder) {
            all.push((name, model));
            opened += 1;
        }
    }
    for (number, (name, model)) in all.into_iter().enumerate() {
        let ids: Vec<i64> = (0..7).map(|i| (5 * i + 3) % model.config().d_vocab as i64).collect();
        // Heads are nodes in all models of the first kind, and in every second one of the others.
        let heads = if number < own { vec![false, true] } else { vec![number % 2 == 0] };
        for heads in heads {
            let options = AttributionGraphOptions::new().max_logits(2).max_nodes(40).heads(heads);
            let graph = model.attribution_graph(Tensor::from_slice(&ids).unsqueeze(0), options).unwrap();
            let residual = graph.residual().unwrap();
            count += 1;
            if residual > worst || residual.is_nan() {
                (worst, worst_at) = (residual, format!("{name}, heads {heads}"));
            }
        }
    }
    assert!(opened > 80, "{opened}");
    println!("sums of {count} graphs: largest relative difference {worst:.2e} ({worst_at})");
    assert!(worst < 1e-4, "{worst_at}");
}

/// The decoder of an encoder's output, in fp64.
fn decoder(name: &str) -> (String, HookedTransformer) {
    let folder = fixtures().join("encoder_decoders").join(name);
    let pair = LoadOptions::new().no_processing().kind(Kind::Double).open_encoder_decoder(folder).unwrap();
    (format!("{name}, decoder"), pair.decoder_of([5, 8, 3, 10]).unwrap())
}

/// Models whose layers multiply the stream, with norms of values or masks that values make; with keys of earlier layers, embeddings of layers
/// and norms of a mixture's parts; and decoders with cross-attention, whose norms stand before, in the stream, and around.
fn multiplied() -> Vec<(String, HookedTransformer)> {
    let mut config = Config { n_key_value_heads: 1, ..models::small() };
    config.attention.value_norm = Some(Normalization::LN);
    config.stream.layer_scalars = true;
    let weights = models::fresh(config.clone()).state_dict().unwrap().into_iter().map(|(name, weight)| {
        let factor = if name.ends_with("layer_scalar") { 0.7 } else { 1.0 };
        (name, weight * factor)
    });
    let load = LoadOptions::new().no_processing().kind(Kind::Double);
    let scaled = load.state_dict(config, weights.collect::<Vec<_>>()).unwrap();
    let mut all =
        ["beam", "doge", "gemma4_text", "gemma4_shared_mixture", "bert"].map(models::of_transformers).to_vec();
    all.extend(["t5", "bart", "t5gemma"].map(decoder));
    all.push(("scaled layers".into(), scaled));
    all
}

/// A transcoder of random weights for each MLP, of which some read the stream, the norm's quotient or what it gives, and some write in front of
/// the norm after the MLP; with skip connections or without; or one that writes to all later layers.
fn random_transcoders(model: &HookedTransformer, number: usize) -> DictionarySet {
    let d_model = model.config().d_model as i64;
    let options = (Kind::Double, Device::Cpu);
    let random = |size: &[i64]| Tensor::randn(size, options) * 0.3;
    let parallel = model.config().parallel_attn_mlp;
    let dictionaries = (0..model.config().n_layers).map(|layer| {
        let normed = model.hook_names().contains(&hook::ln2_normalized(layer).to_string());
        let stream = match (parallel, model.encoder_output()) {
            (true, _) => hook::resid_pre(layer),
            (false, Some(_)) => hook::resid_mid_cross(layer),
            (false, None) => hook::resid_mid(layer),
        };
        let before = model.config().norm_position() == NormPosition::Before
            || model.config().norm_position() == NormPosition::BeforeAndAfter;
        let in_stream = model.config().norm_position() == NormPosition::InStream;
        let hook_in = match (number + layer) % 3 {
            0 if !in_stream => stream,
            1 if normed && before => hook::ln2_normalized(layer),
            _ => hook::mlp_hook_in(layer),
        };
        let hook_out =
            if (number + layer).is_multiple_of(2) { hook::mlp_out(layer) } else { hook::mlp_hook_out(layer) };
        let config = DictionaryConfig {
            hook_out,
            apply_b_dec_to_input: false,
            ..DictionaryConfig::new(hook_in, FeatureActivation::TopK(4))
        };
        let weights = DictionaryWeights {
            w_enc: random(&[24, d_model]),
            b_enc: random(&[24]),
            w_dec: random(&[24, d_model]),
            b_dec: random(&[d_model]),
            w_skip: (number % 2 == 1).then(|| random(&[d_model, d_model])),
            threshold: None,
            b_gate: None,
            r_mag: None,
        };
        Dictionary::new(config, weights).unwrap()
    });
    DictionarySet::new(dictionaries.collect()).unwrap()
}

/// With transcoders that reconstruct nothing, errors are large, and sums hold all the same.
#[test]
fn inputs_add_up_with_random_transcoders_in_every_family() {
    tch::manual_seed(0);
    let (mut worst, mut worst_at, mut count) = (0.0, String::new(), 0);
    for (number, (name, model)) in models::in_fp64().into_iter().chain(multiplied()).enumerate() {
        if model.config().attn_only() {
            continue;
        }
        let ids: Vec<i64> = (0..6).map(|i| (5 * i + 3) % model.config().d_vocab as i64).collect();
        let options = AttributionGraphOptions::new().max_logits(2).transcoders(random_transcoders(&model, number));
        let graph =
            model.attribution_graph(Tensor::from_slice(&ids).unsqueeze(0), options.first_pos(number % 2)).unwrap();
        assert!(graph.nodes().iter().any(|node| matches!(node, AttributionNode::Feature { .. })), "{name}");
        let residual = graph.residual().unwrap();
        count += 1;
        if residual > worst || residual.is_nan() {
            (worst, worst_at) = (residual, name);
        }
    }
    println!("sums of {count} graphs with transcoders: largest relative difference {worst:.2e} ({worst_at})");
    assert!(worst < 1e-4 && count > 30, "{worst_at}: {worst:.2e}, {count}");
}

/// One sentence each: what was expected, what came, what to do.
#[test]
fn what_cannot_be_a_graph_says_why() {
    let model = HookedTransformer::toy().unwrap();
    let prompt = "When Mary and John";
    let graph = |options: AttributionGraphOptions| model.attribution_graph(prompt, options).unwrap_err().to_string();
    let new = AttributionGraphOptions::new;
    let reference = Reference::open("llama_plt", "graph");
    let of_llama = graph(new().transcoders(reference.transcoders.clone()));
    let cases = [
        (graph(new().max_nodes(0)), "max_nodes"),
        (graph(new().batch_size(0)), "batch_size"),
        (graph(new().update_interval(2)), "max_nodes"),
        (graph(new().first_pos(2)), "transcoders"),
        (graph(new().logit_probability(1.5)), "probability"),
        (graph(new().logits([" Mary", " Mary"])), "once"),
        (graph(new().logits([100_000])), "100000"),
        (graph(new().logits(Vec::<i64>::new())), "token"),
        (of_llama, "stream has 128"),
        (model.attribution_graph([prompt, prompt], new()).unwrap_err().to_string(), "one prompt"),
    ];
    let small = model.attribution_graph(prompt, new().max_nodes(10)).unwrap();
    let n = small.nodes().len();
    let intervene = |feature: usize, pos: usize, value: f64, freeze: Freeze| {
        let interventions = [FeatureIntervention { layer: 0, pos, feature, value }];
        let toy = Reference::open("toy_plt", "graph");
        toy.model.feature_intervention(prompt, &toy.transcoders, &interventions, freeze).unwrap_err().to_string()
    };
    let more = [
        (small.edge(0, n).unwrap_err().to_string(), "beyond"),
        (small.prune(PruneOptions::new().nodes(1.5)).unwrap_err().to_string(), "between 0 and 1"),
        (small.supernode_edges(&[Supernode::new("a", [0, 0])]).unwrap_err().to_string(), "twice"),
        (small.interventions(&Supernode::new("a", [0]), 0.0).unwrap_err().to_string(), "no feature"),
        (small.write_files(&GraphFile::new("a/b"), std::env::temp_dir()).unwrap_err().to_string(), "name for a file"),
        (intervene(22, 1, 0.0, Freeze::All), "22 features"),
        (intervene(0, 99, 0.0, Freeze::All), "positions"),
        (intervene(0, 1, f64::NAN, Freeze::Attention), "finite"),
        (intervene(0, 1, 0.0, Freeze::Layers(2..9)), "4 layers"),
    ];
    for (message, part) in cases.into_iter().chain(more) {
        println!("{message}");
        assert!(message.contains(part), "{message}: no {part}");
    }
}

#[test]
fn json_is_that_of_circuit_tracer() {
    let reference = Reference::open("toy_plt", "graph");
    let graph = reference.graph(reference.options());
    let text = graph.to_json(&GraphFile::new("toy-plt").scan("seen/toy_plt")).unwrap();
    let ours: Value = serde_json::from_str(&text).unwrap();
    let theirs: Value =
        serde_json::from_str(&std::fs::read_to_string(folder("toy_plt").join("toy-plt.json")).unwrap()).unwrap();
    same("", &ours, &theirs);
    let folder = tempfile::tempdir().unwrap();
    graph.write_files(&GraphFile::new("toy-plt").scan("seen/toy_plt"), folder.path()).unwrap();
    let list = std::fs::read_to_string(folder.path().join("graph-metadata.json")).unwrap();
    let expected = std::fs::read_to_string(self::folder("toy_plt").join("graph-metadata.json")).unwrap();
    same("", &serde_json::from_str(&list).unwrap(), &serde_json::from_str(&expected).unwrap());
}

/// Equal but for the last digits of numbers.
fn same(at: &str, ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<BTreeSet<_>>(), b.keys().collect::<BTreeSet<_>>(), "{at}");
            b.iter().for_each(|(key, value)| same(&format!("{at}.{key}"), &a[key], value));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| same(&format!("{at}[{i}]"), a, b));
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= RELATIVE * b.abs().max(1e-3), "{at}: {a} and {b}");
        }
        (a, b) => assert_eq!(a, b, "{at}"),
    }
}

/// What the model does with other activations, frozen and free, as circuit-tracer's does.
#[test]
fn interventions_are_those_of_circuit_tracer() {
    let mut tally = Tally::default();
    for case in ["toy_plt", "toy_clt", "toy_skip_jumprelu", "llama_plt"] {
        let reference = Reference::open(case, "graph");
        let tokens = Tensor::from_slice(&reference.ids("tokens")).unsqueeze(0);
        for (number, fact) in reference.facts["interventions"].as_array().unwrap().iter().enumerate() {
            let of = |i: usize| fact["feature"][i].as_u64().unwrap() as usize;
            let activation = fact["value"].as_f64().unwrap();
            for (how, freeze) in
                [("iterative", Freeze::Attention), ("direct", Freeze::All), ("unfrozen", Freeze::Nothing)]
            {
                for (to, value) in [("zero", 0.0), ("double", 2.0 * activation)] {
                    let key = format!("intervene.{number}.{how}.{to}");
                    let Some(logits) = reference.tensors.get(&format!("{key}.logits_last")) else { continue };
                    let intervention = FeatureIntervention { layer: of(0), pos: of(1), feature: of(2), value };
                    let interventions = [intervention];
                    let output = reference
                        .model
                        .feature_intervention(&tokens, &reference.transcoders, &interventions, freeze.clone())
                        .unwrap();
                    let ours = output.logits.get(-1);
                    tally.compare(&format!("{case} {key}.logits"), &ours, logits, 1e-4);
                    let Some(pre) = reference.tensors.get(&format!("{key}.pre_activations")) else { continue };
                    let ours: Vec<Tensor> = output.pre_activations.into_iter().map(Option::unwrap).collect();
                    let ours = Tensor::stack(&ours, 0);
                    // circuit-tracer leaves out the first position.
                    let rest = |x: &Tensor| x.narrow(1, 1, x.size()[1] - 1);
                    tally.compare(&format!("{case} {key}.pre"), &rest(&ours), &rest(pre), 1e-4);
                }
            }
        }
    }
    tally.finish("interventions of circuit-tracer");
}

/// What the graph predicts is what happens: with everything frozen, each feature and each logit changes by the edge.
#[test]
fn edges_are_what_interventions_change() {
    let (mut worst, mut count) = (0.0f64, 0);
    for case in ["toy_plt", "toy_clt", "toy_skip_jumprelu", "llama_plt"] {
        let reference = Reference::open(case, "graph");
        let graph = reference.graph(reference.options());
        let tokens = Tensor::from_slice(&reference.ids("tokens")).unsqueeze(0);
        let centred = |logits: &Tensor| logits.get(-1) - logits.get(-1).mean(Kind::Float);
        let clean = reference.model.feature_intervention(&tokens, &reference.transcoders, &[], Freeze::All).unwrap();
        let influence = graph.influence().unwrap();
        let mut sources: Vec<usize> = (0..graph.n_selected()).collect();
        sources.sort_by(|a, b| influence[*b].total_cmp(&influence[*a]));
        // The two features with most influence, each by itself, and both at once.
        for group in [vec![sources[0]], vec![sources[1]], vec![sources[0], sources[1]]] {
            let interventions = graph.interventions(&Supernode::new("chosen", group.clone()), 3.0).unwrap();
            let run = reference
                .model
                .feature_intervention(&tokens, &reference.transcoders, &interventions, Freeze::All)
                .unwrap();
            for (node, of) in graph.nodes().iter().enumerate() {
                let predicted: f64 = group.iter().map(|source| 2.0 * graph.edge(*source, node).unwrap()).sum();
                let (before, after) = match of {
                    AttributionNode::Feature { layer, pos, feature } => {
                        let at = |x: &[Option<Tensor>]| {
                            x[*layer].as_ref().unwrap().double_value(&[*pos as i64, *feature as i64])
                        };
                        (at(&clean.pre_activations), at(&run.pre_activations))
                    }
                    AttributionNode::Logit { id, .. } => {
                        (centred(&clean.logits).double_value(&[*id]), centred(&run.logits).double_value(&[*id]))
                    }
                    _ => continue,
                };
                worst = worst.max((after - before - predicted).abs());
                count += 1;
            }
        }
    }
    println!("{count} changes: largest difference from the edges {worst:.2e}");
    assert!(worst < RELATIVE && count > 500);
}

/// How much more a neuron writes.
const MORE: f64 = 1e-3;

/// The same without transcoders, in every family with an MLP: a neuron writes more than it wrote, by so little that no clipped value is one
/// that is not, and all else is frozen by patches.
#[test]
fn edges_are_what_neurons_change_in_every_family() {
    let (mut worst, mut worst_at, mut count) = (0.0, String::new(), 0);
    // A prediction head is linear at its gates, which have no point to be frozen at.
    let all = models::in_fp64().into_iter().chain(multiplied());
    for (name, model) in all.filter(|(_, model)| model.config().head.is_none()) {
        let names = model.hook_names();
        let is_frozen = |name: &str| {
            let ends =
                [".hook_scale", ".hook_pattern", ".hook_attn_scores", "attn.hook_gate", ".hook_mlp_out", "ple_out"];
            ends.iter().any(|end| name.ends_with(end))
                && !["embed", "q_norm", "k_norm", "mlp.ln", "ple.ln"].iter().any(|part| name.contains(part))
        };
        let frozen: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_frozen(name)).collect();
        let ids: Vec<i64> = (0..6).map(|i| (7 * i + 2) % model.config().d_vocab as i64).collect();
        let ids = Tensor::from_slice(&ids).unsqueeze(0);
        let graph = model.attribution_graph(&ids, AttributionGraphOptions::new().max_logits(2).max_nodes(40)).unwrap();
        let influence = graph.influence().unwrap();
        let neurons = (0..graph.n_selected()).filter_map(|node| match graph.nodes()[node] {
            AttributionNode::Neuron { layer: 0, pos, neuron } => Some((node, pos, neuron)),
            _ => None,
        });
        let Some((source, pos, neuron)) = neurons.max_by(|a, b| influence[a.0].total_cmp(&influence[b.0])) else {
            continue;
        };
        if names.iter().any(|name| name.contains("experts")) {
            continue; // the row of a neuron among those of experts has no short way
        }
        let gated = names.iter().any(|name| name.ends_with("hook_pre_linear"));
        let read = if gated { "pre_linear" } else { "pre" };
        let run = |hooks: Hooks| model.run(&ids, RunOptions::new().cache(HookFilter::All).hooks(hooks)).unwrap().cache;
        let clean = run(Hooks::new());
        let results = clean.get_neuron_results(0, NeuronResultOptions::new().neurons(neuron as i64)).unwrap();
        let patched = frozen.iter().fold(Hooks::new(), |hooks, point| {
            let value = clean.get(*point).unwrap().shallow_clone();
            if point.ends_with(".0.hook_mlp_out") {
                let changed = value.copy();
                let mut row = changed.select(1, pos as i64);
                row += results.select(1, pos as i64).view_as(&row) * MORE;
                return hooks.patch(*point, Patch::set(changed));
            }
            hooks.patch(*point, Patch::set(value))
        });
        let changed = run(patched);
        let mut size = 0.0f64;
        let mut differences = Vec::new();
        for (node, of) in graph.nodes().iter().enumerate().filter(|(node, _)| *node != source) {
            let at = |cache: &ActivationCache| match of {
                AttributionNode::Neuron { layer, pos, neuron } => {
                    cache.get((read, *layer)).unwrap().double_value(&[0, *pos as i64, *neuron as i64])
                }
                AttributionNode::Logit { pos, id } => {
                    let logits = cache.get("unembed.hook_out").unwrap().get(0).get(*pos as i64);
                    logits.double_value(&[*id]) - logits.mean(Kind::Double).double_value(&[])
                }
                _ => f64::NAN,
            };
            if graph.value(node).is_some() {
                let edge = graph.edge(source, node).unwrap();
                size = size.max(edge.abs());
                differences.push(((at(&changed) - at(&clean)) / MORE - edge).abs());
                count += 1;
            }
        }
        let difference = differences.into_iter().fold(0.0, f64::max) / size.max(1e-9);
        if difference > worst {
            (worst, worst_at) = (difference, name);
        }
    }
    println!("{count} changes: largest difference from the edges {worst:.2e}, relative ({worst_at})");
    assert!(worst < RELATIVE && count > 400, "{worst_at}: {worst:.2e}, {count}");
}

/// What an encoder gives at one position changes a logit by the edge, with all else as it was.
#[test]
fn edges_from_an_encoder_are_what_it_changes() {
    let (mut worst, mut count) = (0.0f64, 0);
    for name in ["t5", "bart", "t5gemma"] {
        let (_, model) = decoder(name);
        let names = model.hook_names();
        let is_frozen = |name: &&String| {
            [".hook_scale", ".hook_pattern", ".hook_mlp_out"].iter().any(|end| name.ends_with(end))
                && !["embed", "mlp.ln"].iter().any(|part| name.contains(part))
        };
        let ids = Tensor::from_slice(&[0i64, 7, 4, 9, 2]).unsqueeze(0);
        let graph = model.attribution_graph(&ids, AttributionGraphOptions::new().max_logits(2)).unwrap();
        let clean = model.run(&ids, RunOptions::new().cache(HookFilter::All)).unwrap().cache;
        let output = model.encoder_output().unwrap().stream();
        for (source, of) in graph.nodes().iter().enumerate() {
            let AttributionNode::Encoder { pos } = of else { continue };
            let changed = output.copy();
            let mut row = changed.select(1, *pos as i64);
            row += output.select(1, *pos as i64);
            let other = model.with_encoder_output(EncoderOutput::new(changed, None).unwrap()).unwrap();
            let frozen = names.iter().filter(is_frozen).map(String::as_str);
            let hooks = frozen.fold(Hooks::new(), |hooks, point| hooks.patch(point, Patch::set(&clean[point])));
            let run = other.run(&ids, RunOptions::new().cache("unembed.hook_out").hooks(hooks)).unwrap().cache;
            for (target, node) in graph.nodes().iter().enumerate() {
                let AttributionNode::Logit { pos, id } = node else { continue };
                let at = |cache: &ActivationCache| {
                    let logits = cache["unembed.hook_out"].get(0).get(*pos as i64);
                    logits.double_value(&[*id]) - logits.mean(Kind::Double).double_value(&[])
                };
                let edge = graph.edge(source, target).unwrap();
                worst = worst.max((at(&run) - at(&clean) - edge).abs() / edge.abs().max(1e-2));
                count += 1;
            }
        }
    }
    println!("{count} changes of an encoder: largest relative difference from the edges {worst:.2e}");
    assert!(worst < RELATIVE && count >= 20, "{worst:.2e}, {count}");
}

/// Heads and neurons of the last position have the edges to a logit that the logit attribution has, less the mean over all tokens.
#[test]
fn edges_to_logits_are_logit_attributions() {
    let model = HookedTransformer::toy().unwrap();
    let prompt = "When Mary and John went to the shop, John gave a bag to";
    let options = AttributionGraphOptions::new().logits([" Mary"]).heads(true).max_nodes(300);
    let graph = model.attribution_graph(prompt, options).unwrap();
    let (_, cache) = model.run_with_cache(prompt).unwrap();
    let u = model.w_u().unwrap(); // [d_model, d_vocab]
    let id = model.to_single_token(" Mary").unwrap();
    let direction = u.select(1, id) - u.mean_dim([1].as_slice(), false, Kind::Float);
    let heads = HeadOptions::new().apply_ln(true).pos(-1).project(&direction);
    let of_heads = cache.stack_head_results(heads).unwrap();
    let neurons = NeuronOptions::new().apply_ln(true).pos(-1).project(&direction);
    let of_neurons = cache.stack_neuron_results(neurons).unwrap();
    let labels = [of_heads.labels(), of_neurons.labels()].concat();
    let values: Vec<f64> = [of_heads.tensor(), of_neurons.tensor()]
        .iter()
        .flat_map(|x| Vec::<f64>::try_from(x.to_kind(Kind::Double).reshape([-1])).unwrap())
        .collect();
    let by_label: BTreeMap<String, f64> = labels.into_iter().zip(values).collect();
    let logit = graph.nodes().len() - 1;
    let (mut worst, mut count) = (0.0f64, 0);
    for (node, of) in graph.nodes().iter().enumerate().take(graph.n_selected()) {
        if of.pos() == 14 {
            let label = graph.label(node).unwrap();
            worst = worst.max((graph.edge(node, logit).unwrap() - by_label[&label]).abs());
            count += 1;
        }
    }
    println!("{count} edges to the logit: largest difference from the attribution {worst:.2e}");
    assert!(worst < 1e-4 && count > 10, "{worst} {count}");
}

/// What the example `attribution_graph` says of the toy model's features is so.
#[test]
fn a_feature_at_the_word_after_the_names_carries_the_name() {
    let (model, set) = (HookedTransformer::toy().unwrap(), DictionarySet::toy().unwrap());
    let graph = |prompt: &str, logit: &str| {
        let options = AttributionGraphOptions::new().logits([logit]).transcoders(set.clone());
        model.attribution_graph(prompt, options).unwrap()
    };
    for (prompt, name) in [
        ("When Mary and John went to the shop, John gave a bag to", " Mary"),
        ("When Peter and Anna went to the park, Anna gave a ball to", " Peter"),
    ] {
        let graph = graph(prompt, name);
        let residual = graph.residual().unwrap();
        assert!(residual < 2e-6, "{name}: {residual:.1e}");
        let influence = graph.influence().unwrap();
        let most = |of: &dyn Fn(&AttributionNode) -> bool| {
            let nodes = (0..graph.nodes().len()).filter(|node| of(&graph.nodes()[*node]));
            nodes.max_by(|a, b| influence[*a].total_cmp(&influence[*b])).unwrap()
        };
        let token = most(&|node| matches!(node, AttributionNode::Token { .. }));
        assert_eq!((graph.label(token).unwrap().as_str(), graph.nodes()[token].pos()), (name, 2));
        let feature = most(&|node| matches!(node, AttributionNode::Feature { .. }));
        let AttributionNode::Feature { layer, pos, .. } = graph.nodes()[feature] else { panic!("{name}") };
        assert_eq!((layer, pos), (0, 5), "{name}: at `went`");
        let inputs = graph.edges_into(feature).unwrap();
        let largest = inputs.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert_eq!(largest.0, token, "{name}: its largest input");
        let logit = graph.nodes().len() - 1;
        let outputs: Vec<f64> = (0..logit)
            .filter(|node| graph.value(*node).is_some())
            .map(|node| graph.edge(feature, node).unwrap())
            .collect();
        let to_logit = graph.edge(feature, logit).unwrap();
        println!("{name}: {} adds {to_logit:.2} to the logit", graph.label(feature).unwrap());
        assert!(outputs.iter().all(|edge| *edge < to_logit), "{name}: the logit is its largest output");
    }
}

/// What the example says with `--exact` is so.
#[test]
fn the_name_goes_by_the_word_after_the_names_to_the_logit() {
    let model = HookedTransformer::toy().unwrap();
    let prompt = "When Mary and John went to the shop, John gave a bag to";
    let options = AttributionGraphOptions::new().logits([" Mary"]).heads(true).max_nodes(400);
    let graph = model.attribution_graph(prompt, options).unwrap();
    assert!(graph.residual().unwrap() < 1e-6);
    let influence = graph.influence().unwrap();
    let most = |of: &dyn Fn(&AttributionNode) -> bool| {
        let nodes = (0..graph.nodes().len()).filter(|node| of(&graph.nodes()[*node]));
        nodes.max_by(|a, b| influence[*a].total_cmp(&influence[*b])).unwrap()
    };
    let token = most(&|node| matches!(node, AttributionNode::Token { .. }));
    assert_eq!((graph.label(token).unwrap().trim(), graph.nodes()[token].pos()), ("Mary", 2));
    let copies = most(&|node| matches!(node, AttributionNode::Head { layer: 0, .. }));
    assert_eq!(graph.nodes()[copies].pos(), 5); // "went"
    let logit = graph.nodes().len() - 1;
    let mut writers = graph.edges_into(logit).unwrap();
    writers.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (writer, _) in &writers[..2] {
        assert!(matches!(graph.nodes()[*writer], AttributionNode::Head { layer: 1, pos: 14, .. }));
        let (from_copy, all) = (graph.edge(copies, *writer).unwrap(), graph.edges_into(*writer).unwrap());
        assert!(all.iter().all(|(_, edge)| f64::from(*edge) <= from_copy), "the copy is the largest input");
    }
    let of_copy = graph.edges_into(copies).unwrap();
    assert!(of_copy.iter().all(|(_, edge)| f64::from(*edge) <= graph.edge(token, copies).unwrap()));
}

#[cfg(feature = "view")]
#[test]
fn a_pruned_graph_is_drawn() {
    use tch_lens::view::{Draw, Page};
    let model = HookedTransformer::toy().unwrap();
    let options = AttributionGraphOptions::new().logits([" Mary"]).heads(true).max_nodes(100);
    let graph = model.attribution_graph("When Mary and John went to the shop, John gave a bag to", options).unwrap();
    let pruned = graph.prune(PruneOptions::new().nodes(0.6)).unwrap();
    let figure = pruned.figure().unwrap();
    let svg = figure.to_svg().unwrap();
    let nodes = svg.matches("data-node=").count();
    assert_eq!(nodes, pruned.nodes().count());
    assert_eq!(svg.matches("data-from=").count(), pruned.edges().len());
    assert!(svg.contains("L1H2") && svg.contains("Mary"), "{svg}");
    assert!(Page::new("graph").section("graph", &pruned).unwrap().to_html().contains("L1H2"));
}
