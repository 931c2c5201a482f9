//! [`Hooks`]: what to do at which hook points.

use tch::Tensor;

use crate::hook::{HookFilter, HookPoint};

/// What a fallible hook may fail with.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// A hook: sees an activation, and may return what is to stand in its place.
pub(crate) type HookFn<'a> = Box<dyn FnMut(&Tensor, HookPoint) -> Result<Option<Tensor>, HookError> + 'a>;

/// What to do at which hook points, in the order in which it was said.
///
/// A hook gets the activation by reference and the point's typed name. To change it, it returns another
/// tensor of the same shape, kind and device; nothing else can change an activation, so what is
/// cached stays what it was.
///
/// ```
/// use tch_lens::{hook, Hooks, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let mut norms = Vec::new();
/// let hooks = Hooks::new()
///     .replace(hook::z(0), |z, _point| z * 0.0) // ablate the attention of block 0
///     .observe("resid_post", |resid, point| norms.push((point, resid.norm().double_value(&[]))));
/// let logits = model.run_with_hooks("When Mary and John went to the shop", hooks)?;
/// assert_eq!(norms.len(), 4);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Default)]
pub struct Hooks<'a> {
    pub(crate) entries: Vec<Entry<'a>>,
}

/// A hook, and where it stands.
pub(crate) struct Entry<'a> {
    pub(crate) at: HookFilter<'a>,
    /// Whether it may return something, so that what comes out of its points may differ from what goes in.
    pub(crate) replaces: bool,
    pub(crate) hook: HookFn<'a>,
}

impl<'a> Hooks<'a> {
    /// No hooks.
    pub fn new() -> Self {
        Hooks::default()
    }

    /// Adds a hook that looks.
    pub fn observe(mut self, at: impl Into<HookFilter<'a>>, mut f: impl FnMut(&Tensor, HookPoint) + 'a) -> Self {
        let hook: HookFn = Box::new(move |tensor, point| {
            f(tensor, point);
            Ok(None)
        });
        self.entries.push(Entry { at: at.into(), replaces: false, hook });
        self
    }

    /// Adds a hook that returns what stands in the activation's place.
    pub fn replace(self, at: impl Into<HookFilter<'a>>, mut f: impl FnMut(&Tensor, HookPoint) -> Tensor + 'a) -> Self {
        self.add(at, move |tensor, point| Ok(Some(f(tensor, point))))
    }

    /// Adds a hook that may fail, and may or may not replace.
    pub fn add(
        mut self,
        at: impl Into<HookFilter<'a>>,
        f: impl FnMut(&Tensor, HookPoint) -> Result<Option<Tensor>, HookError> + 'a,
    ) -> Self {
        self.entries.push(Entry { at: at.into(), replaces: true, hook: Box::new(f) });
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
