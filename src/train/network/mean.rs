//! The mean of what a network was at the ends of cycles of its learning rates (Izmailov et al. 2018, "Averaging
//! weights leads to wider optima and better generalization").

use candle_core::{Result, Tensor};

use super::float::FloatNetwork;

/// A mean of parameters by name.
#[derive(Debug, Default)]
pub struct Mean {
    /// Networks in it.
    count: u32,
    tensors: Vec<(String, Tensor)>,
}

impl Mean {
    /// The mean of so many networks, whose parameters a checkpoint had.
    pub fn new(count: u32, tensors: Vec<(String, Tensor)>) -> Mean {
        Mean { count, tensors }
    }

    /// Networks in the mean.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// What a checkpoint has to keep.
    pub fn tensors(&self) -> &[(String, Tensor)] {
        &self.tensors
    }

    /// Takes a network into the mean.
    ///
    /// # Errors
    /// If the device fails, or the network has other parameters than those before.
    pub fn add(&mut self, network: &FloatNetwork) -> Result<()> {
        let own = parameters(network)?;
        let count = f64::from(self.count);
        self.tensors = match self.count {
            0 => own,
            _ => (self.tensors.iter().zip(own))
                .map(|((name, mean), (_, own))| {
                    let mean = (((mean * count)? + own)? / (count + 1.0))?;
                    Ok((name.clone(), mean))
                })
                .collect::<Result<_>>()?,
        };
        self.count += 1;
        Ok(())
    }

    /// Puts the mean in place of the parameters of a network, and returns these.
    ///
    /// # Errors
    /// As for [`Mean::add`].
    pub fn replace(&self, network: &FloatNetwork) -> Result<Vec<(String, Tensor)>> {
        let before = parameters(network)?;
        put(network, &self.tensors)?;
        Ok(before)
    }
}

/// Copies of all parameters, by name.
fn parameters(network: &FloatNetwork) -> Result<Vec<(String, Tensor)>> {
    let parameters = network.parameters().into_iter();
    let copy = parameters.map(|p| Ok((p.name, p.var.as_tensor().copy()?)));
    copy.collect()
}

/// Sets all parameters, given in their order.
///
/// # Errors
/// If a shape differs, or the device fails.
pub fn put(network: &FloatNetwork, tensors: &[(String, Tensor)]) -> Result<()> {
    let parameters = network.parameters().into_iter();
    for (parameter, (_, tensor)) in parameters.zip(tensors) {
        parameter.var.set(tensor)?;
    }
    Ok(())
}
