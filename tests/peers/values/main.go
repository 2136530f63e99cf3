// What Go makes of the values that people and other programs write: the right answers of tests/golden/go-values.tsv.
//
//	values < FILE > FILE    each line is KIND, tab, VALUE (quoted as in Go), tab, anything; the last is replaced by the answer
//
// An answer is the value as Go prints it again, or "error".
package main

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			fmt.Println(lines.Text())
			continue
		}
		value, err := strconv.Unquote(fields[1])
		if err != nil {
			fmt.Fprintf(os.Stderr, "values: %s: %v\n", fields[1], err)
			os.Exit(1)
		}
		fmt.Printf("%s\t%s\t%s\n", fields[0], fields[1], answer(fields[0], value))
	}
}

func answer(kind, value string) string {
	switch kind {
	case "address": // the CNI plugins, --public-ip, --iface
		if ip := net.ParseIP(value); ip != nil {
			return ip.String()
		}
	case "network": // net-conf, subnet.env, the CNI plugins
		if ip, network, err := net.ParseCIDR(value); err == nil {
			ones, _ := network.Mask.Size()
			return fmt.Sprintf("%s/%d", ip, ones)
		}
	case "boolean": // flags and their variables
		if is, err := strconv.ParseBool(value); err == nil {
			return fmt.Sprint(is)
		}
	case "integer": // flags and their variables
		if number, err := strconv.ParseInt(value, 0, 64); err == nil {
			return fmt.Sprint(number)
		}
	case "mac": // leases and the CNI plugins
		if mac, err := net.ParseMAC(value); err == nil && len(mac) == 6 {
			return mac.String()
		}
	case "duration": // spans of time; negative ones have no use
		if span, err := time.ParseDuration(value); err == nil && span >= 0 {
			return fmt.Sprint(span.Nanoseconds())
		}
	case "server": // etcd's servers
		server, err := url.Parse(value)
		if err == nil && (server.Scheme == "http" || server.Scheme == "https") && server.Host != "" {
			return server.Scheme + "://" + server.Host
		}
	}
	return "error"
}
