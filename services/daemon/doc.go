// Package daemon is what every main of the suite calls: from arguments and
// signals to a served socket and back. Nothing is registered here and nothing
// calls back but what is handed in.
//
// A daemon's recipe, whole:
//
//	type contentdConfig struct {
//		daemon.Common
//		contentd.Config
//	}
//
//	func (c contentdConfig) Check() error {
//		return errors.Join(c.Common.Check(), c.Config.Check())
//	}
//
//	func contentdMain(ctx context.Context, log *slog.Logger, args []string) error {
//		cfg := contentdConfig{daemon.Default(), contentd.Default()}
//		if err := daemon.Configure(&cfg, suite.Contentd, args, log); err != nil {
//			return err
//		}
//		imaged, err := rpc.Dial(suite.Socket(cfg.Sockets, suite.Imaged))
//		if err != nil {
//			return err
//		}
//		defer imaged.Close()
//		store, err := contentd.Open(cfg.Config, contentd.Needs{Leases: leaserpc.NewRegistry(imaged), Log: log})
//		if err != nil {
//			return err
//		}
//		defer store.Close()
//		lis, err := daemon.Listen(cfg.Common, suite.Contentd)
//		if err != nil {
//			return err
//		}
//		srv := rpc.NewServer(suite.Contentd, log)
//		contentrpc.Register(srv, store)
//		return daemon.Serve(ctx, daemon.Serving{
//			Name:      suite.Contentd,
//			Common:    cfg.Common,
//			Server:    srv,
//			Listeners: []net.Listener{lis},
//			Plugins:   []suite.Plugin{{Type: "io.containerd.content.v1", ID: "content"}},
//			Log:       log,
//		}, store.Publish)
//	}
//
// [Listen] comes after the engine is open: a client that connects earlier waits
// in [rpc.Dial]'s patience, or in the socket's queue where systemd made it. A
// further socket of a daemon is [ListenAt]. Health, the description of the
// daemon and its metrics are served by [Serve] without being asked for.
package daemon
