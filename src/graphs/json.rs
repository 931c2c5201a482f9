//! [`GraphFile`]: a pruned graph as the JSON of circuit-tracer's `create_graph_files`, which Neuronpedia shows.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{json, Value};

use super::graph::AttributionGraph;
use super::node::AttributionNode;
use super::prune::PruneOptions;
use super::supernodes::Supernode;
use crate::{Error, Result};

/// How a graph is written as JSON.
///
/// ```
/// use tch_lens::graphs::{AttributionGraphOptions, GraphFile};
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let options = AttributionGraphOptions::new().logits([" Mary"]).max_nodes(50);
/// let graph = model.attribution_graph("When Mary and John went to the shop, John gave a bag to", options)?;
/// let text = graph.to_json(&GraphFile::new("mary").scan("toy"))?;
/// assert!(text.contains("\"links\""));
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GraphFile {
    slug: String,
    scan: String,
    prune: PruneOptions,
    pinned: Vec<usize>,
    supernodes: Vec<Supernode>,
}

impl GraphFile {
    /// A file of this name, which Neuronpedia calls the slug.
    pub fn new(slug: impl Into<String>) -> Self {
        let prune = PruneOptions::default();
        GraphFile { slug: slug.into(), scan: String::new(), prune, pinned: Vec::new(), supernodes: Vec::new() }
    }

    /// What the transcoders are called where their features are shown: circuit-tracer's `scan`.
    pub fn scan(mut self, scan: impl Into<String>) -> Self {
        self.scan = scan.into();
        self
    }

    /// How much is pruned.
    pub fn prune(mut self, options: PruneOptions) -> Self {
        self.prune = options;
        self
    }

    /// Nodes that are pinned when the graph is opened, by their numbers.
    pub fn pinned(mut self, nodes: impl Into<Vec<usize>>) -> Self {
        self.pinned = nodes.into();
        self
    }

    /// Groups of nodes that are shown as one.
    pub fn supernodes(mut self, supernodes: impl Into<Vec<Supernode>>) -> Self {
        self.supernodes = supernodes.into();
        self
    }
}

#[derive(Serialize)]
#[allow(non_snake_case)]
struct Node {
    node_id: String,
    feature: i64,
    layer: String,
    ctx_idx: usize,
    feature_type: &'static str,
    token_prob: f64,
    is_target_logit: bool,
    run_idx: u32,
    reverse_ctx_idx: u32,
    jsNodeId: String,
    clerp: String,
    influence: Option<f64>,
    activation: Option<f64>,
}

#[derive(Serialize)]
struct Link {
    source: String,
    target: String,
    weight: f64,
}

impl AttributionGraph {
    /// The pruned graph as JSON: circuit-tracer's schema, which Neuronpedia takes. Neurons and heads, which circuit-tracer does not have, are
    /// nodes of the types `neuron` and `attention head`.
    ///
    /// # Errors
    ///
    /// Those of [`AttributionGraph::prune`]; [`Error::WrongInput`] for pinned nodes or members of supernodes that were pruned.
    pub fn to_json(&self, file: &GraphFile) -> Result<String> {
        let pruned = self.prune(file.prune)?;
        let influence = pruned.cumulative_influence();
        let id = |node: usize| self.json_node(node, influence[node]).node_id;
        let links: Vec<Link> = pruned
            .edges()
            .iter()
            .map(|edge| Link { source: id(edge.source), target: id(edge.target), weight: edge.effect })
            .collect();
        let connected: HashSet<&str> =
            links.iter().flat_map(|link| [link.source.as_str(), link.target.as_str()]).collect();
        let nodes = pruned.nodes().map(|node| self.json_node(node, influence[node]));
        let shown = |node: &Node| {
            connected.contains(node.node_id.as_str()) || matches!(node.feature_type, "embedding" | "logit")
        };
        let nodes: Vec<Node> = nodes.filter(shown).collect();
        let known: HashSet<&str> = nodes.iter().map(|node| node.node_id.as_str()).collect();
        let chosen = |node: usize| -> Result<String> {
            self.check(node)?;
            let id = id(node);
            match known.contains(id.as_str()) {
                true => Ok(id),
                false => Err(Error::wrong_input(format!(
                    "`{}` was pruned: keep more nodes, or leave it out",
                    self.nodes[node]
                ))),
            }
        };
        let pinned = file.pinned.iter().map(|node| chosen(*node)).collect::<Result<Vec<_>>>()?;
        let mut supernodes = Vec::new();
        for supernode in &file.supernodes {
            let mut ids = vec![supernode.name.clone()];
            for member in &supernode.members {
                ids.push(chosen(*member)?);
            }
            supernodes.push(ids);
        }
        let document = json!({
            "metadata": self.metadata(file),
            "qParams": {
                "pinnedIds": pinned,
                "supernodes": supernodes,
                "linkType": "both",
                "clickedId": "",
                "sg_pos": "",
            },
            "nodes": nodes,
            "links": links,
        });
        serde_json::to_string_pretty(&document).map_err(|error| Error::malformed("the graph's JSON", error))
    }

    /// Writes the graph to `SLUG.json` in a folder, and lists it in `graph-metadata.json` there: circuit-tracer's `create_graph_files`. The
    /// result is the path of the first.
    ///
    /// # Errors
    ///
    /// Those of [`AttributionGraph::to_json`]; [`Error::Io`]; [`Error::Malformed`] for a `graph-metadata.json` that does not list graphs.
    pub fn write_files(&self, file: &GraphFile, folder: impl AsRef<Path>) -> Result<PathBuf> {
        let folder = folder.as_ref();
        if file.slug.is_empty() || file.slug.contains(['/', '\\']) {
            return Err(Error::wrong_input(format!(
                "`{}` is no name for a file: use letters, digits and dashes",
                file.slug
            )));
        }
        let text = self.to_json(file)?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let path = folder.join(format!("{}.json", file.slug));
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        let list = folder.join("graph-metadata.json");
        let mut graphs = match std::fs::read(&list) {
            Ok(bytes) => {
                let value: Value = serde_json::from_slice(&bytes).map_err(|error| Error::malformed(&list, error))?;
                let graphs = value.get("graphs").and_then(Value::as_array).cloned();
                graphs.ok_or_else(|| Error::malformed(&list, "it has no list `graphs`"))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io(&list)(error)),
        };
        graphs.retain(|graph| graph.get("slug").and_then(Value::as_str) != Some(file.slug.as_str()));
        graphs.push(self.metadata(file));
        let text = serde_json::to_string_pretty(&json!({ "graphs": graphs }));
        let text = text.map_err(|error| Error::malformed(&list, error))?;
        std::fs::write(&list, text).map_err(Error::io(&list))?;
        Ok(path)
    }

    fn metadata(&self, file: &GraphFile) -> Value {
        let numbers = || self.ids.iter().map(i64::to_string).collect::<Vec<_>>();
        let tokens = self.texts.clone().unwrap_or_else(numbers);
        json!({
            "slug": file.slug,
            "scan": file.scan,
            "transcoder_list": [],
            "prompt_tokens": tokens,
            "prompt": self.prompt.clone().unwrap_or_else(|| numbers().join(" ")),
            "node_threshold": file.prune.node_share(),
            "schema_version": 1,
        })
    }

    fn json_node(&self, number: usize, influence: f64) -> Node {
        let node = self.nodes[number];
        let pos = node.pos();
        let activation = f64::from(self.activations[number]);
        let plain = |node_id: String, feature: i64, layer: String, feature_type, js_node_id: String| Node {
            node_id,
            feature,
            layer,
            ctx_idx: pos,
            feature_type,
            token_prob: 0.0,
            is_target_logit: false,
            run_idx: 0,
            reverse_ctx_idx: 0,
            jsNodeId: js_node_id,
            clerp: String::new(),
            influence: Some(influence),
            activation: None,
        };
        let unit = |layer: usize, name: String, id: usize, feature_type| {
            let shown = plain(
                format!("{layer}_{name}_{pos}"),
                cantor(layer, id),
                layer.to_string(),
                feature_type,
                format!("{layer}_{name}-0"),
            );
            Node { activation: Some(activation), ..shown }
        };
        match node {
            AttributionNode::Feature { layer, feature, .. } => {
                unit(layer, feature.to_string(), feature, "cross layer transcoder")
            }
            AttributionNode::Neuron { layer, neuron, .. } => unit(layer, neuron.to_string(), neuron, "neuron"),
            AttributionNode::ExpertNeuron { layer, expert, neuron, .. } => {
                unit(layer, format!("E{expert}N{neuron}"), neuron, "neuron")
            }
            AttributionNode::Head { layer, head, .. } => unit(layer, format!("H{head}"), head, "attention head"),
            AttributionNode::Error { layer, .. } => {
                let id = format!("0_{layer}_{pos}");
                plain(id, -1, layer.to_string(), "mlp reconstruction error", format!("{layer}_{pos}-0"))
            }
            AttributionNode::Token { id, .. } => {
                plain(format!("E_{id}_{pos}"), pos as i64, "E".into(), "embedding", format!("E_{id}-{pos}"))
            }
            AttributionNode::Encoder { pos: of } => {
                plain(format!("X_{of}"), of as i64, "E".into(), "embedding", format!("X_{of}"))
            }
            AttributionNode::Logit { id, .. } => {
                let layer = (self.n_layers + 1).to_string();
                let place = number - self.columns.len;
                let probability = self.logits[place].probability;
                let token = self.logit_texts.as_ref().map_or_else(|| id.to_string(), |texts| texts[place].clone());
                Node {
                    token_prob: probability,
                    is_target_logit: place == 0,
                    clerp: format!("Output \"{token}\" (p={probability:.3})"),
                    influence: None,
                    ..plain(format!("{layer}_{id}_{pos}"), id, layer, "logit", format!("L_{id}-{pos}"))
                }
            }
        }
    }
}

/// One number for two: Cantor's pairing function.
fn cantor(x: usize, y: usize) -> i64 {
    ((x + y) * (x + y + 1) / 2 + y) as i64
}
