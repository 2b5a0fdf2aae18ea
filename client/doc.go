// Package client is the Go SDK of the suite: what gantryctl and plugins are
// built on.
//
// [Dial] returns a [Client], which has every noun of the public socket as its
// contract. What takes more than one noun, or more than one call, is a method of
// [Namespace]: import an image, unpack it, create a container from it, run a
// process in it; put a blob and get it.
//
// A call that is made again after it may have been done already is made in such
// a way that doing it twice is doing it once. So the methods here wait for a
// daemon that restarts, for as long as the constant patience says, and [Wait]
// for as long as its context lets it.
//
// # Following events
//
// A plugin that follows events needs nothing but the bus: [DialBus], and a
// [Subscription] with a file for its cursor. It is told every event at least
// once and in order, whatever restarts, and is told where some are lost. For
// somebody who looks on, as gantryctl does, [Client.Follow] is the same without
// a file.
//
// # What an image may decide
//
// Content from elsewhere is data and never control. An archive names no image
// unless the caller lets it, its metadata is read up to a limit, and nothing of
// it is kept unless all of it is right. The labels of an image that mean
// something to the suite or to its clients do not become labels of a container.
// A user that is written in digits is a number. See [Namespace.Import],
// [NewSpec] and [ParseUser].
package client
