//! Pairs of prompts, and what the field's Python tools compute on them (`tests/fixtures/interventions` and `circuits`).

use std::collections::BTreeMap;

use super::{fixtures, read, Fixture};
use tch::{Kind, Tensor};
use tch_lens::analysis::Answer;
use tch_lens::circuits::{Ablation, CircuitTask};
use tch_lens::{HookedTransformer, LoadOptions, Metric};

/// What the tools compute on pairs of prompts.
pub struct Pair {
    pub tensors: BTreeMap<String, Tensor>,
    pub model: HookedTransformer,
    pub answers: [Vec<i64>; 2],
}

impl Pair {
    pub fn open(name: &str) -> Self {
        let mut tensors = read(&fixtures().join(format!("interventions/{name}.safetensors")));
        tensors.extend(read(&fixtures().join(format!("circuits/{name}_eap.safetensors"))));
        let raw = LoadOptions::new().no_processing();
        let model = match name.starts_with("toy") {
            true => raw.toy().unwrap(),
            false => raw.open(Fixture::folder(name)).unwrap(),
        };
        let answers = [0, 1].map(|column| Vec::try_from(tensors["answers"].select(1, column)).unwrap());
        Pair { tensors, model, answers }
    }

    pub fn metric(&self) -> Metric<'static> {
        let [right, wrong] = self.answers.clone();
        Metric::logit_diff(Answer::per_row(right), Answer::per_row(wrong))
    }

    pub fn task<'m>(&self, metric: &'m Metric<'static>) -> CircuitTask<'m, 'static> {
        let ablation = Ablation::counterfactual(&self.tensors["corrupted_tokens"]);
        CircuitTask::new(&self.model, &self.tensors["clean_tokens"], ablation, metric).unwrap()
    }

    pub fn batch(&self) -> f64 {
        self.answers[0].len() as f64
    }
}

/// A pair of prompts for small models, and a metric.
pub fn pair() -> (Tensor, Tensor, Metric<'static>) {
    let clean = Tensor::from_slice2(&[[5i64, 14, 3, 10], [9, 6, 11, 5]]);
    let corrupted = Tensor::from_slice2(&[[5i64, 4, 3, 10], [9, 6, 2, 5]]);
    (clean, corrupted, Metric::logit_diff(4, 3))
}

/// Models of different structure: norms before, after and around the sublayers, grouped queries, parallel blocks, a mixture.
pub const STRUCTURES: [&str; 6] = ["gpt2", "llama_gqa_tied", "gpt_neox", "gemma2", "olmo2", "mixtral"];

/// A fixture's model in fp64, as its checkpoint has it.
pub fn in_double(family: &str) -> HookedTransformer {
    LoadOptions::new().no_processing().kind(Kind::Double).open(Fixture::folder(family)).unwrap()
}
