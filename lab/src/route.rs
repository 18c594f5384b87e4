//! Routes of a namespace.

use std::net::IpAddr;

use netlink_packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::RouteMessageBuilder;

use super::{
    address::parse_net,
    error::{Error, Result},
    namespace::Namespace,
};

impl Namespace {
    /// Adds a route to the network `to` (`0.0.0.0/0` and `::/0` are the default routes) through
    /// `link`, by way of the router `via` unless the network is on the link itself. A route to the
    /// same network with the same metric is replaced.
    ///
    /// # Errors
    ///
    /// When there is no such link, or it has no address from which `via` can be reached.
    pub fn add_route(&self, to: &str, via: Option<&str>, link: &str, metric: u32) -> Result<()> {
        let route = self.route(to, via, link, metric)?;
        self.netlink(format!("add a route to {to} through {link}"), async move |netlink| {
            netlink.route().add(route).replace().execute().await
        })
    }

    /// Deletes the route that [`Namespace::add_route`] added with the same arguments.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn delete_route(&self, to: &str, via: Option<&str>, link: &str, metric: u32) -> Result<()> {
        let route = self.route(to, via, link, metric)?;
        self.netlink(format!("delete the route to {to} through {link}"), async move |netlink| {
            netlink.route().del(route).execute().await
        })
    }

    fn route(&self, to: &str, via: Option<&str>, link: &str, metric: u32) -> Result<RouteMessage> {
        let net = parse_net(to)?;
        let malformed = |text: &str| Error::Malformed {
            text: text.to_owned(),
            expected: "an address of the same family as its network, such as 10.77.1.1",
        };
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .map_err(|_| malformed(to))?
            .output_interface(self.ifindex(link)?)
            .priority(metric);
        route = match via {
            Some(via) => {
                let router = via.parse().map_err(|_| malformed(via))?;
                route.gateway(router).map_err(|_| malformed(via))?
            }
            None => route.scope(RouteScope::Link),
        };
        Ok(route.build())
    }
}
