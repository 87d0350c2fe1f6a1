# What dsv3 needs: a thread library and Eigen, by its package or, failing that, by its headers. Used
# by the build and, installed, by dsv3-config.cmake.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 QUIET NO_MODULE)
endif()
if(NOT TARGET Eigen3::Eigen)
  find_path(DSV3_EIGEN_INCLUDE_DIR Eigen/Core PATH_SUFFIXES eigen3)
  if(NOT DSV3_EIGEN_INCLUDE_DIR)
    message(FATAL_ERROR "dsv3 needs Eigen 3.4: install it (Debian: libeigen3-dev), or set "
                        "Eigen3_DIR or DSV3_EIGEN_INCLUDE_DIR")
  endif()
  add_library(Eigen3::Eigen INTERFACE IMPORTED)
  set_target_properties(Eigen3::Eigen PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${DSV3_EIGEN_INCLUDE_DIR}")
endif()
