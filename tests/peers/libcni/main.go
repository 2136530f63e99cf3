// The CNI library's own words, as a program: what a runtime does with a list of plugins.
//
//	libcni LIST-FILE PLUGIN-FOLDERS CACHE-FOLDER VERB [CONTAINER NETNS INTERFACE]
//
// VERB: add, check, del, status, validate, cached, and gc, where CONTAINER and INTERFACE are the one attachment that
// is still valid. Capability values (JSON) come in CAPABILITIES, arguments (K=V;K=V) in ARGS.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var failure *types.Error
		if errors.As(err, &failure) {
			fmt.Fprintf(os.Stderr, "code %d: ", failure.Code)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 4 {
		return errors.New("usage: libcni LIST-FILE PLUGIN-FOLDERS CACHE-FOLDER VERB [CONTAINER NETNS INTERFACE]")
	}
	list, err := libcni.ConfListFromFile(args[0])
	if err != nil {
		return err
	}
	cni := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(args[1]), args[2], nil)
	call, err := attachment(args[4:])
	if err != nil {
		return err
	}
	ctx := context.Background()
	switch args[3] {
	case "add":
		return printed(cni.AddNetworkList(ctx, list, call))
	case "check":
		return cni.CheckNetworkList(ctx, list, call)
	case "del":
		return cni.DelNetworkList(ctx, list, call)
	case "gc":
		valid := []types.GCAttachment{{ContainerID: call.ContainerID, IfName: call.IfName}}
		return cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
	case "status":
		return cni.GetStatusNetworkList(ctx, list)
	case "validate":
		capabilities, err := cni.ValidateNetworkList(ctx, list)
		fmt.Println(strings.Join(capabilities, " "))
		return err
	case "cached":
		return printed(cni.GetNetworkListCachedResult(list, call))
	default:
		return fmt.Errorf("unknown verb %q", args[3])
	}
}

func attachment(words []string) (*libcni.RuntimeConf, error) {
	words = append(words, "", "", "")
	call := &libcni.RuntimeConf{ContainerID: words[0], NetNS: words[1], IfName: words[2]}
	if text := os.Getenv("CAPABILITIES"); text != "" {
		if err := json.Unmarshal([]byte(text), &call.CapabilityArgs); err != nil {
			return nil, err
		}
	}
	for _, pair := range strings.Split(os.Getenv("ARGS"), ";") {
		if key, value, found := strings.Cut(pair, "="); found {
			call.Args = append(call.Args, [2]string{key, value})
		}
	}
	return call, nil
}

func printed(result types.Result, err error) error {
	if err != nil || result == nil {
		return err
	}
	return result.Print()
}
