package client

import (
	"strconv"
	"strings"
)

// Signals as Linux counts them, whatever this system does.
const (
	sigKILL = 9
	sigTERM = 15
)

var signals = map[string]uint32{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8,
	"KILL": sigKILL, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": sigTERM,
	"STKFLT": 16, "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22,
	"URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29,
	"PWR": 30, "SYS": 31,
}

// Realtime signals, of which two belong to the C library.
const (
	sigRTMIN = 34
	sigRTMAX = 64
)

// ParseSignal reads "SIGTERM", "TERM", "15", "RTMIN+3" or "RTMAX-1"; anything
// else is [errdefs.ErrInvalidArgument].
func ParseSignal(s string) (uint32, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signals[name]; ok {
		return n, nil
	}
	base, rest := uint32(0), name
	switch {
	case strings.HasPrefix(name, "RTMIN"):
		base, rest = sigRTMIN, strings.TrimPrefix(strings.TrimPrefix(name, "RTMIN"), "+")
	case strings.HasPrefix(name, "RTMAX"):
		n, err := strconv.ParseUint(first(strings.TrimPrefix(strings.TrimPrefix(name, "RTMAX"), "-"), "0"), 10, 8)
		if err != nil || n > sigRTMAX-sigRTMIN {
			return 0, invalid("%q is no signal", s)
		}
		return sigRTMAX - uint32(n), nil
	}
	if rest == "" && base > 0 {
		return base, nil
	}
	n, err := strconv.ParseUint(rest, 10, 8)
	if err != nil || base+uint32(n) == 0 || base+uint32(n) > sigRTMAX {
		return 0, invalid("%q is no signal", s)
	}
	return base + uint32(n), nil
}
