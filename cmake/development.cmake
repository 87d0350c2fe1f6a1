# Flags of dsv3's own programs, and how they are declared.
add_library(dsv3_development INTERFACE)
target_link_libraries(dsv3_development INTERFACE dsv3)
target_compile_options(dsv3_development INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow $<$<BOOL:${DSV3_WERROR}>:-Werror>)
# g++ 12 takes the undefined inputs of its own AVX-512 intrinsics, as Eigen uses them, for mistakes
# (GCC bug 105593). Builds for other processors keep the warning.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  set(DSV3_AVX512_FLAGS -Wno-maybe-uninitialized -Wno-uninitialized)
  # It also sees overlaps in its own std::string where there are none (GCC bug 105651).
  target_compile_options(dsv3_development INTERFACE -Wno-restrict)
endif()
if(DSV3_NATIVE)
  target_compile_options(dsv3_development INTERFACE ${DSV3_AVX512_FLAGS})
endif()
if(DSV3_SANITIZE OR DSV3_COVERAGE)  # tests that repeat themselves many times may do so less often
  target_compile_definitions(dsv3_development INTERFACE DSV3_SLOW_BUILD)
endif()
if(DSV3_SANITIZE)
  set(sanitize -fsanitize=${DSV3_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(dsv3_development INTERFACE ${sanitize})
  target_link_options(dsv3_development INTERFACE ${sanitize})
endif()
if(DSV3_COVERAGE)
  target_compile_options(dsv3_development INTERFACE --coverage)
  target_link_options(dsv3_development INTERFACE --coverage)
endif()

# Sets `variable` to whether `header` is there; says which Debian package holds it where it is not.
function(dsv3_find_header variable header package)
  find_path(${variable}_DIR ${header})
  if(NOT ${variable}_DIR)
    message(WARNING "${header} not found (Debian: ${package}): what needs it is left out. "
                    "cmake/install-dependencies.sh installs it")
  endif()
  set(${variable} "${${variable}_DIR}" PARENT_SCOPE)
endfunction()
