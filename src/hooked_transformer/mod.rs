//! [`HookedTransformer`]: a network with its tokenizer, its files, its runs and their caches.
//!
//! This module uses all modules but those that run a model many times, such as `patching`, which use it. [`load`] reads models from files,
//! [`init`] makes fresh weights, and [`toy`] loads the model that is part of the crate. [`run`] runs a model, [`generation`] continues texts,
//! [`text`] converts between text and tokens, and [`save`] writes a model.

mod directions;
mod generation;
mod init;
mod load;
mod loss;
mod moving;
mod open_cache;
mod prompt_test;
mod run;
mod run_input;
mod run_options;
mod save;
mod save_hugging_face;
mod text;
mod token_position;
#[cfg(feature = "toy")]
mod toy;
mod with_hooks;
mod with_saes;

use std::ops::Deref;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::model::{EncoderOutput, Transformer};
use crate::pretrained::processing::Processing;
use crate::pretrained::Pretrained;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result, TokenizerError};

pub use directions::OutputTokens;
pub use generation::{Generated, Generation, GenerationStep, RowStep, StepInfo, StepOptions};
pub use init::Init;
pub use prompt_test::{AnswerPosition, PromptTest, PromptTestOptions, RankedToken};
pub use run_options::{ReturnType, RunOptions, RunOutput};
pub(crate) use save::write_json;
pub use token_position::{Occurrence, SingleToken};
pub use with_hooks::ModelWithHooks;

/// A language model with hook points: TransformerLens' `HookedTransformer`.
///
/// A clone is cheap, because clones share the weights. A model can be used from several threads at the same time.
///
/// ```
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let (logits, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let next = logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
/// assert_eq!(model.to_string(&[next])?, " Mary");
/// assert_eq!(cache[("pattern", 0)].size()[1], 4); // [batch, head, query, key]
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HookedTransformer {
    model: Transformer,
    tokenizer: Option<Tokenizer>,
    default_prepend_bos: bool,
    processing: Arc<[Processing]>,
    /// The `config.json` of the checkpoint, if it was a Hugging Face folder.
    hugging_face: Option<Arc<Map<String, Value>>>,
    /// What the cross-attention of a decoder reads in its runs.
    encoder_output: Option<EncoderOutput>,
}

impl Deref for HookedTransformer {
    type Target = Transformer;

    fn deref(&self) -> &Transformer {
        &self.model
    }
}

impl From<Pretrained> for HookedTransformer {
    fn from(pretrained: Pretrained) -> Self {
        let Pretrained { model, tokenizer, default_prepend_bos, processing, hugging_face } = pretrained;
        let steps: Vec<String> = processing.iter().map(ToString::to_string).collect();
        let steps = steps.join("; ");
        HookedTransformer {
            model: model.with_processing(&steps),
            tokenizer,
            default_prepend_bos,
            processing: processing.into(),
            hugging_face: hugging_face.map(Arc::new),
            encoder_output: None,
        }
    }
}

impl HookedTransformer {
    /// The network without tokenizer and files.
    pub fn transformer(&self) -> &Transformer {
        &self.model
    }

    /// The steps of weight processing: for each step, whether it was applied when the model was loaded, and otherwise why not.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// assert_eq!(model.processing()[0].to_string(), "fold_ln done");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn processing(&self) -> &[Processing] {
        &self.processing
    }

    /// A handle on a decoder whose runs read this output of an encoder: its cross-attention needs one. The model itself does not change.
    ///
    /// Everything that runs a model runs the handle: hooks, sweeps, gradients, generation. An output of one row is read by all rows of
    /// a run. [`HookedEncoderDecoder::decoder_of`](crate::HookedEncoderDecoder::decoder_of) makes it of an input.
    ///
    /// ```
    /// use tch_lens::{hook, tch, Config, EncoderOutput, HookedTransformer, Hooks, Patch};
    /// let encoder = Config::new(2, 24, 2, 50, 12).encoder();
    /// let decoder = HookedTransformer::init(Config::new(2, 16, 2, 50, 12).decoder_of(&encoder), 0)?;
    /// let output = tch::Tensor::randn([1, 4, 24], (tch::Kind::Float, tch::Device::Cpu)); // [batch, encoder_pos, d_encoder]
    /// let decoder = decoder.with_encoder_output(EncoderOutput::new(output, None)?)?;
    /// let hooks = Hooks::new().patch(hook::cross_pattern(0).head(1), Patch::zero());
    /// assert_eq!(decoder.run_with_hooks([0, 7, 4], hooks)?.size(), [1, 3, 50]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a model without cross-attention; [`Error::Shape`] for an output of another width, and
    /// [`Error::WrongInput`] for one of another kind.
    pub fn with_encoder_output(&self, output: EncoderOutput) -> Result<Self> {
        let Some(cross) = self.config().attention.cross else {
            return Err(Error::unsupported("only a decoder with cross-attention reads an encoder's output"));
        };
        let (found, expected) = (output.stream().size(), cross.d_encoder as i64);
        if found.last() != Some(&expected) {
            let expected = format!("[batch, pos, {expected}]");
            return Err(Error::Shape { what: "the encoder's output".into(), found, expected });
        }
        let (found, expected) = (output.stream().f_kind()?, self.kind());
        if found != expected {
            let why = format!("the encoder's output is {found:?}, and the decoder {expected:?}: convert one of them");
            return Err(Error::wrong_input(why));
        }
        let output = output.to(self.device())?;
        Ok(HookedTransformer { encoder_output: Some(output), ..self.clone() })
    }

    /// What the cross-attention of this handle on a decoder reads.
    pub fn encoder_output(&self) -> Option<&EncoderOutput> {
        self.encoder_output.as_ref()
    }

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Missing`] if the model has no tokenizer.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| TokenizerError::Missing.into())
    }

    /// The model with this tokenizer instead of its own.
    pub fn with_tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }
}
