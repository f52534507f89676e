// allnorm-simulator: the exchange of ranks on a described cluster, in SimGrid's time. `allnorm scale --cluster` starts
// it.
//
// What runs is the library's exchange (src/wire.cpp): the same messages, gathered or along the tree, merged for real.
// Its links are messages as SimGrid simulates them, where a rank that looks for one waits for it: so no time passes in
// looking.
#include <algorithm>
#include <fstream>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <xbt/log.h>
#include <nlohmann/json.hpp>
#include <simgrid/s4u.hpp>

#include "src/exchange.hpp"

namespace {

using namespace allnorm;
using Json = nlohmann::json;
namespace sg4 = simgrid::s4u;

constexpr double micro = 1e-6, giga = 1e9;

double clock_us() { return sg4::Engine::get_clock() / micro; }

// What the model says of a cluster; see launch/clusters.
struct Cluster {
  std::size_t ranks_per_node, nodes_per_leaf;
  double node_latency_us, node_gb_s;  // between ranks of a node
  double nics_per_node, nic_gb_s;     // each direction
  double network_latency_us;          // between ranks of two nodes of a leaf switch
  double leaf_latency_us, leaf_gb_s;  // what another leaf adds; of all uplinks of a leaf
};

Cluster cluster_of(const Json& json) {
  return {json.at("ranks_per_node"),     json.at("nodes_per_leaf"),  json.at("node_latency_us"),
          json.at("node_gb_s"),          json.at("nics_per_node"),   json.at("nic_gb_s"),
          json.at("network_latency_us"), json.at("leaf_latency_us"), json.at("leaf_gb_s")};
}

// A star of stars: ranks about their node, nodes about their leaf switch, leaves about the spine. The parallel uplinks
// of a leaf are one link of all their bandwidth, as adaptive routing would use them; so are the NICs of a node, of
// which one message uses one.
std::vector<sg4::Host*> build(const Cluster& of, std::size_t ranks) {
  const auto link = [](sg4::NetZone* zone, const std::string& name, double gb_s, double latency_us) {
    auto* made = zone->create_split_duplex_link(name, gb_s * giga);
    made->set_latency(std::max(0.0, latency_us) * micro);
    made->seal();
    return sg4::LinkInRoute(made, sg4::LinkInRoute::Direction::UP);
  };
  std::vector<sg4::Host*> hosts;
  auto* const root = sg4::create_star_zone("cluster");
  for (std::size_t leaf = 0; hosts.size() < ranks; ++leaf) {
    const std::string leaf_name = "leaf" + std::to_string(leaf);
    auto* const leaf_zone = sg4::create_star_zone(leaf_name);
    leaf_zone->set_parent(root);
    auto* const leaf_router = leaf_zone->create_router(leaf_name + "-router");
    for (std::size_t node = 0; node < of.nodes_per_leaf && hosts.size() < ranks; ++node) {
      const std::string name = leaf_name + "-node" + std::to_string(node);
      auto* const zone = sg4::create_star_zone(name);
      zone->set_parent(leaf_zone);
      auto* const router = zone->create_router(name + "-router");
      for (std::size_t rank = 0; rank < of.ranks_per_node && hosts.size() < ranks; ++rank) {
        auto* const host = zone->create_host("rank" + std::to_string(hosts.size()), giga);
        host->seal();
        zone->add_route(host->get_netpoint(), nullptr, nullptr, nullptr,
                        {link(zone, host->get_name() + "-link", of.node_gb_s, of.node_latency_us / 2)}, true);
        hosts.push_back(host);
      }
      auto* const nic = leaf_zone->create_link(name + "-nic", of.nic_gb_s * giga);
      nic->set_sharing_policy(sg4::Link::SharingPolicy::FATPIPE);  // bounds each message, whatever else there is
      nic->seal();
      const auto up = link(leaf_zone, name + "-nics", of.nics_per_node * of.nic_gb_s,
                           (of.network_latency_us - of.node_latency_us) / 2);
      leaf_zone->add_route(zone->get_netpoint(), nullptr, router, nullptr, {up, sg4::LinkInRoute(nic)}, true);
      zone->seal();
    }
    root->add_route(leaf_zone->get_netpoint(), nullptr, leaf_router, nullptr,
                    {link(root, leaf_name + "-uplinks", of.leaf_gb_s, of.leaf_latency_us / 2)}, true);
    leaf_zone->seal();
  }
  root->seal();
  return hosts;
}

// Links over SimGrid's mailboxes. Everything is one thread of one process: ranks share a message's memory, which passes
// as a pointer, and only its length is simulated. What software takes for a message is half its sender's, half its
// receiver's time.
class SimulatedLinks final : public Links {
 public:
  SimulatedLinks(int rank, const std::vector<sg4::ActorPtr>& ranks, int ranks_per_node, double overhead_us)
      : rank_(rank), ranks_(ranks), ranks_per_node_(ranks_per_node), half_(overhead_us * micro / 2) {}

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return static_cast<int>(ranks_.size()); }
  std::string_view transport() const noexcept override { return "simulated"; }
  int node_of(int rank) const override { return rank / ranks_per_node_; }
  void post(std::span<const int> to, std::uint64_t, std::shared_ptr<const Bytes> bytes) override {
    for (const int rank : to) {
      sg4::this_actor::sleep_for(half_);
      sg4::Mailbox* const there = mailbox(rank_, rank);
      there->set_receiver(ranks_[static_cast<std::size_t>(rank)]);  // under way at once, whether it waits for it or not
      there->put_init(new Sent(bytes), static_cast<std::uint64_t>(bytes->size()))->detach();
    }
  }
  std::shared_ptr<const Bytes> poll(int from, std::uint64_t) override {
    const std::unique_ptr<Sent> taken(mailbox(from, rank_)->get<Sent>());
    sg4::this_actor::sleep_for(half_);
    return *taken;
  }
  std::vector<int> unsent(std::uint64_t) override { return {}; }
  void abort(const Error&) noexcept override {}

 private:
  using Sent = std::shared_ptr<const Bytes>;
  static sg4::Mailbox* mailbox(int from, int to) {
    return sg4::Mailbox::by_name(std::to_string(from) + " to " + std::to_string(to));
  }

  int rank_;
  const std::vector<sg4::ActorPtr>& ranks_;
  int ranks_per_node_;
  double half_;  // seconds
};

struct Experiment {
  int group = 1;            // ranks, consecutive
  std::size_t doubles = 0;  // of each message
  double exchange_us = 0, exposed_us = 0;
};
struct Job {
  std::vector<sg4::ActorPtr> ranks{};
  int ranks_per_node = 1;
  double overhead_us = 0, between_us = 0;
  int exchanges = 1;  // of each kind
  std::vector<Experiment> experiments{};
  sg4::BarrierPtr barrier{};  // takes no time
};

// Everything of a simulation is one thread: ranks share the job.
void run_rank(Job& job, int rank) {
  Patience patience;
  patience.now = [] { return sg4::Engine::get_clock(); };
  patience.relax = [] {};
  const auto links = std::make_shared<SimulatedLinks>(rank, job.ranks, job.ranks_per_node, job.overhead_us);
  Queue queue = Queue::cpu();
  for (Experiment& experiment : job.experiments) {
    const int first = rank / experiment.group * experiment.group;
    std::vector<int> members(static_cast<std::size_t>(std::min(experiment.group, links->size() - first)));
    std::iota(members.begin(), members.end(), first);
    const auto group = communicate(links, members, links->next_context, patience);
    // All ranks begin at one moment; the last one's time counts.
    const auto time = [&](double& longest, double between_us) {
      Message message{
          Header("simulated", allnorm::Direction::gradients, 0), std::vector<double>(experiment.doubles), 0, {}};
      job.barrier->wait();
      const double begin = clock_us();
      for (int i = 0; i < job.exchanges; ++i) {
        if (between_us > 0) sg4::this_actor::sleep_for(between_us * micro);
        message = group->exchange(std::move(message), queue);
      }
      longest = std::max(longest, (clock_us() - begin) / job.exchanges - between_us);
      job.barrier->wait();
    };
    time(experiment.exchange_us, 0);
    time(experiment.exposed_us, job.between_us);
  }
}

int simulate(sg4::Engine& engine, const char* path) {
  std::ifstream file(path);
  const Json json = Json::parse(file);
  const Cluster cluster = cluster_of(json.at("cluster"));
  Job job{{},
          static_cast<int>(cluster.ranks_per_node),
          json.at("overhead_us"),
          json.at("between_us"),
          json.at("exchanges"),
          {},
          {}};
  for (const Json& one : json.at("experiments")) job.experiments.push_back({one.at("group"), one.at("doubles")});
  xbt_log_control_set("root.thres:warning");
  // Latencies and bandwidths are what the cluster's file says, and no compute but the model's takes time.
  for (const char* setting : {"network/model:CM02", "network/latency-factor:1", "network/bandwidth-factor:1",
                              "network/weight-S:0", "network/crosstraffic:0", "network/TCP-gamma:1e15",
                              "contexts/stack-size:512", "surf/precision:1e-9", "maxmin/precision:1e-9"})
    sg4::Engine::set_config(setting);
  const auto hosts = build(cluster, json.at("ranks"));
  job.barrier = sg4::Barrier::create(static_cast<unsigned int>(hosts.size()));
  for (std::size_t rank = 0; rank < hosts.size(); ++rank)
    job.ranks.push_back(sg4::Actor::create("rank" + std::to_string(rank), hosts[rank],
                                           [&job, rank] { run_rank(job, static_cast<int>(rank)); }));
  engine.run();
  for (const Experiment& one : job.experiments)
    std::cout << Json{{"group", one.group},
                      {"doubles", one.doubles},
                      {"exchange_us", one.exchange_us},
                      {"exposed_us", one.exposed_us}}
                     .dump()
              << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    sg4::Engine engine(&argc, argv);
    if (argc == 2) return simulate(engine, argv[1]);
    std::cerr << "usage: allnorm-simulator JOB.json\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "allnorm-simulator: " << error.what() << "\n";
    return 1;
  }
}
