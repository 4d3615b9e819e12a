import { fileURLToPath } from 'node:url'

/** How much of a suite runs: enough to notice what broke, or enough to publish. */
export type Extent = 'quick' | 'full'

/** One part of the torture: a program that prints its seed, and ends with `N passed, N failed` or why it is skipped. */
export interface Suite {
  readonly name: string
  /** What it shows, for a list. */
  readonly about: string
  /** Below the compiled tests. */
  readonly file: string
  readonly quick: readonly string[]
  readonly full: readonly string[]
  /** Runs of the full form, each with another seed and a folder of its own: two of them fit on two cores. */
  readonly pieces?: number
  /** Whether its choices follow `--seed`. Default: true. */
  readonly isSeeded?: boolean
}

/** The longest first, so that two at a time end together. */
export const suites: readonly Suite[] = [
  {
    name: 'kill9',
    about: 'SIGKILL at any moment of pushes, retags and deletes',
    file: 'torture/kill9.js',
    quick: ['--rounds', '25'],
    full: ['--rounds', '1000', '--fresh', '75'],
    pieces: 4,
  },
  {
    name: 'powercut-ext4',
    about: 'the power of an ext4 disk fails (root)',
    file: 'torture/kill9.js',
    quick: ['--rounds', '25', '--power-cut', 'ext4'],
    full: ['--rounds', '1000', '--fresh', '75', '--power-cut', 'ext4'],
    pieces: 4,
  },
  {
    name: 'powercut-xfs',
    about: 'the same on xfs (root, xfsprogs)',
    file: 'torture/kill9.js',
    quick: ['--rounds', '10', '--power-cut', 'xfs'],
    full: ['--rounds', '200', '--fresh', '75', '--power-cut', 'xfs'],
    pieces: 2,
  },
  {
    name: 'powercut-btrfs',
    about: 'the same on btrfs, where the kernel can (root, btrfs-progs)',
    file: 'torture/kill9.js',
    quick: ['--rounds', '10', '--power-cut', 'btrfs'],
    full: ['--rounds', '200', '--fresh', '75', '--power-cut', 'btrfs'],
    pieces: 2,
  },
  {
    name: 'gc',
    about: 'collection without a pause against 64 clients',
    file: 'torture/gc.js',
    quick: ['--seconds', '20'],
    full: ['--seconds', '600'],
  },
  {
    name: 'disk-full',
    about: 'small disks filled to many levels: pushes, deletes and pulls at each (root)',
    file: 'torture/disk-full.js',
    quick: ['--levels', '50'],
    full: ['--levels', '1000'],
  },
  {
    name: 'interleave',
    about: 'each operation against each step of a collection, in every order',
    file: 'stores/interleave.test.js',
    quick: [],
    full: [],
    isSeeded: false,
  },
  {
    name: 'sweep',
    about: 'each system call of each operation: killed there, or the call fails (root, strace)',
    file: 'torture/sweep.js',
    quick: ['--quick'],
    full: [],
  },
  {
    name: 'replay',
    about:
      'every state of the disk that a power cut may leave, if only what was synced is sure (root, strace)',
    file: 'torture/replay.js',
    quick: ['--quick'],
    full: ['--bound', '10000'],
  },
  {
    name: 'upstream',
    about: 'a mirror whose upstream does everything wrong',
    file: 'torture/upstream.js',
    quick: ['--rounds', '4', '--pulls', '150'],
    full: ['--rounds', '100', '--pulls', '200'],
  },
  {
    name: 'damage',
    about: 'damaged pages of the index and its log, and damaged files',
    file: 'torture/damage.js',
    quick: ['--pages', '6', '--blocks', '4', '--files', '8'],
    full: [],
  },
  {
    name: 'clock',
    about: 'the system clock jumps by ten years, and back (libfaketime)',
    file: 'clock.test.js',
    quick: [],
    full: [],
    isSeeded: false,
  },
  {
    name: 'two-servers',
    about: 'a second server on the folder of a living one, and of one that was killed',
    file: 'start.test.js',
    quick: [],
    full: [],
    isSeeded: false,
  },
  {
    name: 'mutants',
    about: 'mistakes made on purpose: the other parts must see each of them',
    file: 'torture/mutants.js',
    quick: ['--quick'],
    full: [],
  },
]

/** The compiled program of a suite. */
export function programOf({ file }: Suite): string {
  return fileURLToPath(new URL(`../${file}`, import.meta.url))
}
