//! The transcoders of the toy model, which are part of the crate.

use std::path::Path;

use super::circuit_tracer::{of_tensors, Config};
use super::options::DictionaryOptions;
use super::tensors::Tensors;
use crate::pretrained::checkpoint::Checkpoint;
use crate::sae::DictionarySet;
use crate::Result;

/// The bytes of a file in `models/toy-transcoders`, which are compiled into the crate.
macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../models/toy-transcoders/", $name)).as_slice())
    };
}

impl DictionarySet {
    /// The transcoders of [`HookedTransformer::toy`](crate::HookedTransformer::toy), which are part of the crate: JumpReLU transcoders of 512
    /// features for each of its four MLPs, from `ln2.hook_normalized` to `hook_mlp_out`.
    ///
    /// `models/toy-transcoders/README.md` says how they were trained, and what they keep of the model.
    ///
    /// ```
    /// use tch_lens::sae::{DictionarySet, SaeOptions};
    /// use tch_lens::HookedTransformer;
    /// let (model, transcoders) = (HookedTransformer::toy()?, DictionarySet::toy()?);
    /// let replaced = model.with_saes(transcoders.dictionaries().to_vec(), SaeOptions::new())?;
    /// let logits = replaced.forward("When Mary and John went to the shop, John gave a bag to")?;
    /// let next = logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
    /// assert_eq!(model.to_string(&[next])?, " Mary");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, for example for lack of memory.
    pub fn toy() -> Result<Self> {
        let options = DictionaryOptions::new();
        let folder = Path::new("models/toy-transcoders");
        let (name, bytes) = file!("config.yaml");
        let config = Config::parse(bytes, &folder.join(name))?;
        let files = [
            file!("layer_0.safetensors"),
            file!("layer_1.safetensors"),
            file!("layer_2.safetensors"),
            file!("layer_3.safetensors"),
        ];
        let mut dictionaries = Vec::new();
        for (layer, (name, bytes)) in files.into_iter().enumerate() {
            let path = folder.join(name);
            let tensors = Tensors::of(Checkpoint::from_safetensors(bytes, &path)?, &path, &options);
            dictionaries.push(of_tensors(tensors, &config, layer)?);
        }
        Ok(DictionarySet::new(dictionaries)?.with_scan(config.scan))
    }
}
