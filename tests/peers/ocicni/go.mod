module peers/ocicni

go 1.25.0

tool github.com/cri-o/ocicni/tools/ocicnitool

require (
	github.com/containernetworking/cni v1.3.0 // indirect
	github.com/containernetworking/plugins v1.9.1 // indirect
	github.com/cri-o/ocicni v0.5.1 // indirect
	github.com/fsnotify/fsnotify v1.10.1 // indirect
	github.com/sirupsen/logrus v1.9.4 // indirect
	github.com/vishvananda/netlink v1.3.1 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/sys v0.46.0 // indirect
)
