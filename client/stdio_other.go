//go:build !unix

package client

import (
	"errors"
	"os"
)

var errNoFIFO = errors.New("this system has no FIFOs")

func openInput(string, string) (*os.File, string, error) { return nil, "", errNoFIFO }

func openOutput(string, string) (from, hold *os.File, path string, err error) {
	return nil, nil, "", errNoFIFO
}
