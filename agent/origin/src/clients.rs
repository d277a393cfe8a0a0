//! The HTTP clients: one for all, and one for each proxy of somebody's own.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use reqwest::Client;

use crate::client;
use crate::options::{OriginOptions, OriginSetupError, ProxyChoice};

/// Clients of proxies that are kept. A machine has one or two; past this the one that was used longest ago goes, and with it
/// its idle connections.
const KEPT: usize = 8;

/// Makes clients, and keeps them with their connections.
pub(crate) struct Clients {
    options: OriginOptions,
    usual: Client,
    others: Mutex<VecDeque<(ProxyChoice, Client)>>,
}

impl Clients {
    pub(crate) fn new(options: &OriginOptions) -> Result<Self, OriginSetupError> {
        Ok(Self {
            usual: client::build(options)?,
            options: options.clone(),
            others: Mutex::default(),
        })
    }

    /// The one that goes through the proxy of the options.
    pub(crate) fn usual(&self) -> &Client {
        &self.usual
    }

    /// The one that goes through `proxy`, if it is another.
    pub(crate) fn through(&self, proxy: Option<&ProxyChoice>) -> Result<Client, OriginSetupError> {
        let Some(proxy) = proxy.filter(|proxy| **proxy != self.options.proxy) else {
            return Ok(self.usual.clone());
        };
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = others.iter().position(|(known, _)| known == proxy)
            && let Some((known, client)) = others.remove(at)
        {
            others.push_front((known, client.clone()));
            return Ok(client);
        }
        let client = client::build(&OriginOptions {
            proxy: proxy.clone(),
            ..self.options.clone()
        })?;
        others.truncate(KEPT - 1);
        others.push_front((proxy.clone(), client.clone()));
        Ok(client)
    }
}
