//! A training in a file: it goes on as if it had not been interrupted.

use std::path::Path;

use tch::{Kind, Tensor};

use super::adam::Parameter;
use super::trainer::{State, Trainer, NAMES};
use crate::format::safetensors;
use crate::pretrained::checkpoint::Checkpoint;
use crate::tensor::file::write_safetensors_with;
use crate::unchecked::mapped::Access;
use crate::{Error, Result};

/// The field of the file's metadata that says how far the training is.
const STEPS: &str = "steps_done";

impl Trainer {
    /// Writes what has been learned to a safetensors file, moments of the optimiser included.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] before the first step; [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let state = self
            .state
            .as_ref()
            .ok_or_else(|| Error::wrong_input("nothing is learned yet: there is nothing to save"))?;
        let mut tensors = Vec::new();
        for (name, parameter) in NAMES.iter().zip(&state.parameters) {
            for (what, tensor) in
                [("value", &parameter.value), ("mean", &parameter.mean), ("square", &parameter.square)]
            {
                tensors.push((format!("{name}.{what}"), tensor.shallow_clone()));
            }
        }
        tensors.push(("idle".into(), state.idle.shallow_clone()));
        let numbers = [state.scales[0], state.scales[1], state.smallest];
        tensors.push(("numbers".into(), Tensor::f_from_slice(&numbers)?));
        write_safetensors_with(path.as_ref(), tensors, &[(STEPS, &self.done.to_string())])
    }

    /// Goes on with a training that [`save`](Trainer::save) wrote, of the same hooks and options.
    ///
    /// ```
    /// use tch_lens::dictionary_learning::{Sparsity, Trainer, TrainerOptions};
    /// use tch_lens::{hook, tch::{Device, Kind, Tensor}};
    /// let file = tempfile::NamedTempFile::new().unwrap();
    /// let new = || Trainer::autoencoder(hook::resid_post(1), TrainerOptions::new(16, Sparsity::TopK(2)).steps(5));
    /// let x = Tensor::randn([32, 8], (Kind::Float, Device::Cpu));
    /// let mut trainer = new()?;
    /// trainer.step(&x, &x)?;
    /// trainer.save(file.path())?;
    /// let mut again = new()?.resume(file.path())?;
    /// assert_eq!(again.step(&x, &x)?, trainer.step(&x, &x)?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Malformed`] for a file that holds no training, or that of a dictionary of another size.
    pub fn resume(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let malformed = |what: String| Error::malformed(path, what);
        let steps = safetensors::metadata(&bytes, STEPS).map_err(|what| Error::malformed(path, what))?;
        let done = steps.and_then(|steps| steps.parse::<usize>().ok());
        let done =
            done.ok_or_else(|| malformed("this file holds no training: its metadata lack `steps_done`".into()))?;
        let checkpoint = Checkpoint::open_file(path, safetensors::entries, Access::Read)?;
        let tensor = |name: &str, kind: Kind| -> Result<Tensor> {
            let found = checkpoint.tensor(name)?;
            let found = found.ok_or_else(|| malformed(format!("this file holds no training: it lacks `{name}`")))?;
            match found.f_kind()? == kind {
                true => Ok(found.f_alias_copy()?),
                false => Err(malformed(format!("`{name}` is of kind {:?}, expected {kind:?}", found.f_kind()?))),
            }
        };
        let mut parameters = Vec::new();
        for name in NAMES {
            let [value, mean, square] =
                ["value", "mean", "square"].map(|what| tensor(&format!("{name}.{what}"), Kind::Float));
            let (value, mean, square) = (value?, mean?, square?);
            if value.size() != mean.size() || value.size() != square.size() {
                return Err(malformed(format!("the moments of `{name}` have other shapes than it")));
            }
            parameters.push(Parameter { value, mean, square });
        }
        let d_sae = self.options.d_sae as i64;
        let sizes: Vec<Vec<i64>> = parameters.iter().map(|parameter| parameter.value.size()).collect();
        let fits = match &sizes[..] {
            [w_enc, b_enc, w_dec, b_dec, threshold] => {
                w_enc.len() == 2
                    && w_dec.len() == 2
                    && [w_enc, b_enc, w_dec, threshold].iter().all(|size| size.first() == Some(&d_sae))
                    && b_dec.first() == w_dec.last()
            }
            _ => false,
        };
        if !fits {
            return Err(malformed(format!(
                "it holds a dictionary with weights of {sizes:?}, not one of {d_sae} features"
            )));
        }
        let numbers = Vec::<f64>::try_from(tensor("numbers", Kind::Double)?.f_reshape([-1i64])?)?;
        let [into, out_of, smallest] = numbers[..] else {
            return Err(malformed("`numbers` must be three".into()));
        };
        let idle = tensor("idle", Kind::Float)?;
        if idle.size() != [d_sae] {
            return Err(malformed(format!("`idle` has shape {:?}, expected [{d_sae}]", idle.size())));
        }
        self.state = Some(State { parameters, scales: [into, out_of], idle, smallest });
        self.done = done;
        Ok(self)
    }
}
