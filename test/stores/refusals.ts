import type { Test } from 'tap'
import { type ErrorKind, RegistryError } from '../../src/oci/errors.js'

/** How a promise is refused: the refusal's kind, or the name of an error that is no refusal at all. */
export async function refusalOf(
  promise: Promise<unknown>,
): Promise<ErrorKind | 'nothing' | `other: ${string}`> {
  try {
    await promise
    return 'nothing'
  } catch (error) {
    return error instanceof RegistryError ? error.kind : `other: ${String(error)}`
  }
}

/** Asserts that the promise is refused in this way. */
export async function refuses(
  t: Test,
  promise: Promise<unknown>,
  kind: ErrorKind,
  what: string,
): Promise<void> {
  t.equal(await refusalOf(promise), kind, what)
}
